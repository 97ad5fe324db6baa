//! Worlds that are broken on purpose: a simulation that finds nothing wrong with them proves nothing.

/// One mistake in the shell around the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A receipt is sent when a step is decided, before it is saved.
    AcknowledgesBeforeSaving,
    /// Effects are carried out before the step is saved.
    ActsBeforeSaving,
    /// A coordinator works without the fence of its lease.
    NoFence,
    /// Blobs are deleted without looking whether the lease is held still.
    DeletesUnguarded,
    /// A step is saved without its lines of the privacy ledger.
    LosesLedger,
    /// A save of which the database did not say whether it was made is taken for made.
    TakesUnsureForSaved,
    /// An update whose upload was tried twice is added twice.
    CountsRetryTwice,
    /// What a spool holds after a power loss is believed.
    BelievesTornSpool,
    /// A release that could not be stored is made again with other noise.
    DrawsNoiseAgain,
    /// A noised sum is divided by the number of updates that came.
    DividesByReceived,
    /// A client sends its update before it is stored.
    SendsBeforeStoring,
    /// A client forgets its accounts when it is killed.
    ForgetsAccounts,
    /// A client accepts before its decision is in its log.
    AcceptsBeforeDeciding,
    /// Whoever asks is told that its update does not count.
    SaysUncounted,
    /// A release leaves an update out.
    LeavesOneOut,
    /// A model holds the time at which it was made.
    StampsModels,
    /// A coordinator looks at no deadline.
    NeverTicks,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::AcknowledgesBeforeSaving,
        Self::ActsBeforeSaving,
        Self::NoFence,
        Self::DeletesUnguarded,
        Self::LosesLedger,
        Self::TakesUnsureForSaved,
        Self::CountsRetryTwice,
        Self::BelievesTornSpool,
        Self::DrawsNoiseAgain,
        Self::DividesByReceived,
        Self::SendsBeforeStoring,
        Self::ForgetsAccounts,
        Self::AcceptsBeforeDeciding,
        Self::SaysUncounted,
        Self::LeavesOneOut,
        Self::StampsModels,
        Self::NeverTicks,
    ];
}
