//! What travels between a client and a coordinator.

use undertone_core::digest::{Digest, Digester};
use undertone_core::id::{AttemptKey, ClientId, Round};
use undertone_core::trainer::Metrics;
use undertone_round::coordinator::ModelRef;

/// What an upload claims to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) key: AttemptKey,
    pub(crate) client: ClientId,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) weight: u32,
}

impl Claim {
    /// A digest of all that is claimed.
    pub(crate) fn fingerprint(&self) -> Digest {
        let mut all = Digester::new();
        all.field(self.key.to_string().as_bytes());
        all.field(self.client.as_str().as_bytes());
        all.field(self.digest.as_bytes());
        all.field(&self.bytes.to_le_bytes());
        all.field(&self.weight.to_le_bytes());
        all.finish()
    }
}

/// Why something is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Later it may be.
    Unavailable,
    /// It is over.
    NotNow,
    /// The asker is to blame.
    Bad,
}

/// From a client. A `call` tells the calls of a client apart.
#[derive(Debug, Clone)]
pub(crate) enum ToServer {
    Hello,
    Answer { key: AttemptKey, answer: Result<(), String> },
    Failure { key: AttemptKey, reason: String },
    Measured { job: usize, round: Round, outcome: Result<Metrics, String> },
    Fetch { call: u64, digest: Digest },
    Upload { call: u64, claim: Claim },
    Chunk { call: u64, offset: u64, bytes: Vec<u8> },
    Settle { call: u64, claim: Claim, asked: u32 },
}

/// To a client.
#[derive(Debug, Clone)]
pub(crate) enum ToClient {
    Welcome,
    Offer {
        job: usize,
        key: AttemptKey,
        model: ModelRef,
        clip_norm: Option<f64>,
    },
    Withdraw {
        key: AttemptKey,
    },
    Evaluate {
        job: usize,
        round: Round,
        model: ModelRef,
    },
    Model {
        call: u64,
        outcome: Result<Vec<u8>, Refused>,
    },
    Go {
        call: u64,
        offset: u64,
    },
    Receipt {
        call: u64,
        outcome: Result<(), Refused>,
    },
    /// Whether it counts.
    Settled {
        call: u64,
        outcome: Result<bool, Refused>,
    },
}

impl ToServer {
    /// Whether it belongs to the session and not to a call: such a message may be lost alone.
    pub(crate) fn is_said(&self) -> bool {
        matches!(self, Self::Answer { .. } | Self::Failure { .. } | Self::Measured { .. })
    }

    /// In a few words.
    pub(crate) fn short(&self) -> String {
        match self {
            Self::Hello => "hello".into(),
            Self::Answer { key, answer } => format!("answer {key} {answer:?}"),
            Self::Failure { key, reason } => format!("failure {key} {reason}"),
            Self::Measured { round, outcome, .. } => {
                format!("measured round {round} {}", if outcome.is_ok() { "ok" } else { "failed" })
            }
            Self::Fetch { call, digest } => format!("fetch #{call} {}", digest.short()),
            Self::Upload { call, claim } => format!("upload #{call} {} {}", claim.key, claim.digest.short()),
            Self::Chunk { call, offset, bytes } => format!("chunk #{call} {offset}+{}", bytes.len()),
            Self::Settle { call, claim, .. } => format!("settle #{call} {}", claim.key),
        }
    }
}

impl ToClient {
    /// As [`ToServer::is_said`].
    pub(crate) fn is_said(&self) -> bool {
        matches!(self, Self::Offer { .. } | Self::Withdraw { .. } | Self::Evaluate { .. })
    }

    /// In a few words.
    pub(crate) fn short(&self) -> String {
        match self {
            Self::Welcome => "welcome".into(),
            Self::Offer { key, model, .. } => format!("offer {key} from {}", model.digest.short()),
            Self::Withdraw { key } => format!("withdraw {key}"),
            Self::Evaluate { round, model, .. } => format!("evaluate round {round} {}", model.digest.short()),
            Self::Model { call, outcome } => match outcome {
                Ok(bytes) => format!("model #{call} {} bytes", bytes.len()),
                Err(refused) => format!("model #{call} {refused:?}"),
            },
            Self::Go { call, offset } => format!("go #{call} {offset}"),
            Self::Receipt { call, outcome } => format!("receipt #{call} {outcome:?}"),
            Self::Settled { call, outcome } => format!("settled #{call} {outcome:?}"),
        }
    }
}
