//! What may go wrong.

/// Kinds of faults. Those that strike at a certain point have a rate; the others come by time ([`Trouble`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A message of a session is lost, and nobody notices.
    MessageDropped,
    /// A message of a session arrives twice.
    MessageDoubled,
    /// A message of a session is overtaken by later ones.
    MessageOvertaken,
    /// A connection breaks under a message.
    ConnectionBroken,
    /// A coordinator is killed before it saves a step.
    KilledBeforeSave,
    /// A coordinator is killed when a step is saved and nothing of it is carried out.
    KilledAfterSave,
    /// A coordinator is killed between two effects of a step.
    KilledBetweenEffects,
    /// The machine of a coordinator loses power in the middle of an upload.
    PowerLostInUpload,
    /// A job's driver breaks, when a step is saved or between two effects, and the daemon goes on without it.
    DriverBroken,
    /// A coordinator stands still in the middle of a step.
    PausedInStep,
    /// A coordinator stands still when it has found what nobody needs, before it deletes it.
    PausedInSweep,
    /// A coordinator dies, and what it was writing arrives at the database later.
    WriteArrivesLate,
    /// The database does not answer, and has done nothing.
    StoreUnreachable,
    /// The database does not say whether it did what it did.
    UnsureDone,
    /// The database does not say whether it did what it did not.
    UnsureNotDone,
    /// The lease cannot be renewed just now.
    LeaseUnheard,
    /// A blob cannot be written just now.
    BlobUnwritable,
    /// A blob cannot be deleted just now.
    BlobUndeletable,
    /// A client is killed before an effect.
    ClientKilled,
    /// A client is killed while it writes a file.
    ClientTornWrite,
    /// A client's data does not meet the contract this time.
    DataUnfit,
    /// Training fails.
    TrainingFailed,
    /// A client sends what breaks the bound on the norm.
    UpdateTooLong,
}

impl Fault {
    /// All of them.
    pub(crate) const ALL: [Self; 23] = [
        Self::MessageDropped,
        Self::MessageDoubled,
        Self::MessageOvertaken,
        Self::ConnectionBroken,
        Self::KilledBeforeSave,
        Self::KilledAfterSave,
        Self::KilledBetweenEffects,
        Self::PowerLostInUpload,
        Self::DriverBroken,
        Self::PausedInStep,
        Self::PausedInSweep,
        Self::WriteArrivesLate,
        Self::StoreUnreachable,
        Self::UnsureDone,
        Self::UnsureNotDone,
        Self::LeaseUnheard,
        Self::BlobUnwritable,
        Self::BlobUndeletable,
        Self::ClientKilled,
        Self::ClientTornWrite,
        Self::DataUnfit,
        Self::TrainingFailed,
        Self::UpdateTooLong,
    ];

    /// What it is counted as.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MessageDropped => "fault: message dropped",
            Self::MessageDoubled => "fault: message doubled",
            Self::MessageOvertaken => "fault: message overtaken",
            Self::ConnectionBroken => "fault: connection broken",
            Self::KilledBeforeSave => "fault: coordinator killed before a save",
            Self::KilledAfterSave => "fault: coordinator killed after a save",
            Self::KilledBetweenEffects => "fault: coordinator killed between effects",
            Self::PowerLostInUpload => "fault: power lost in an upload",
            Self::DriverBroken => "fault: driver broken",
            Self::PausedInStep => "fault: coordinator paused in a step",
            Self::PausedInSweep => "fault: coordinator paused in a sweep",
            Self::WriteArrivesLate => "fault: write of a dead coordinator arrives late",
            Self::StoreUnreachable => "fault: store unreachable",
            Self::UnsureDone => "fault: unsure whether saved, and it was",
            Self::UnsureNotDone => "fault: unsure whether saved, and it was not",
            Self::LeaseUnheard => "fault: lease not renewed",
            Self::BlobUnwritable => "fault: blob not written",
            Self::BlobUndeletable => "fault: blob not deleted",
            Self::ClientKilled => "fault: client killed before an effect",
            Self::ClientTornWrite => "fault: client killed in a write",
            Self::DataUnfit => "fault: data unfit",
            Self::TrainingFailed => "fault: training failed",
            Self::UpdateTooLong => "fault: update too long",
        }
    }

    /// How often it strikes in ten thousand times that it could, where things go badly.
    pub(crate) fn rate(self) -> u32 {
        match self {
            Self::MessageDropped | Self::MessageDoubled | Self::MessageOvertaken => 400,
            Self::ConnectionBroken => 150,
            Self::KilledBeforeSave | Self::KilledAfterSave | Self::KilledBetweenEffects => 150,
            Self::PausedInStep | Self::DriverBroken | Self::PowerLostInUpload => 100,
            Self::PausedInSweep => 2_000,
            Self::WriteArrivesLate => 100,
            Self::StoreUnreachable => 200,
            Self::UnsureDone | Self::UnsureNotDone => 200,
            Self::LeaseUnheard => 800,
            Self::BlobUnwritable | Self::BlobUndeletable => 500,
            Self::ClientKilled | Self::ClientTornWrite => 100,
            Self::DataUnfit | Self::TrainingFailed | Self::UpdateTooLong => 150,
        }
    }
}

/// What comes over the whole now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// A coordinator is killed.
    Kill,
    /// The machine of a coordinator loses power: what was not synced is torn.
    PowerLoss,
    /// A coordinator stands still, for longer than a lease or not.
    Pause,
    /// The clock of a coordinator's machine jumps.
    ClockJump,
    /// A client is killed.
    ClientKill,
    /// The machine of a client loses power.
    ClientPowerLoss,
    /// Some clients cannot be reached for a while.
    Partition,
    /// A coordinator cannot reach the database for a while.
    StoreAway,
    /// A connection breaks.
    Break,
    /// An operator ends a job.
    Cancel,
}

impl Trouble {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::Kill,
        Self::PowerLoss,
        Self::Pause,
        Self::ClockJump,
        Self::ClientKill,
        Self::ClientPowerLoss,
        Self::Partition,
        Self::StoreAway,
        Self::Break,
        Self::Cancel,
    ];

    /// What it is counted as.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "trouble: coordinator killed",
            Self::PowerLoss => "trouble: power lost at a coordinator",
            Self::Pause => "trouble: coordinator paused",
            Self::ClockJump => "trouble: clock jumped",
            Self::ClientKill => "trouble: client killed",
            Self::ClientPowerLoss => "trouble: power lost at a client",
            Self::Partition => "trouble: clients cut off",
            Self::StoreAway => "trouble: store away",
            Self::Break => "trouble: connection broken",
            Self::Cancel => "trouble: job cancelled",
        }
    }
}
