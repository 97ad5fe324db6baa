//! The durable state of a job, and the values in it.

use super::{
    Broadcast, Buffering, Closing, Collecting, Measuring, Member, Offering, Pool, Progress, Publishing,
    Refusal, Releasing, Standing, key,
};
use crate::event::Outcome;
use crate::job::Job;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, AttemptKey, ClientId, JobId, Round};
use undertone_core::participation::History;
use undertone_privacy::adaptive_clip::ClipState;

/// A model file in the blob store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// Digest of the safetensors file.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
}

/// A blob by digest and length.
pub type BlobRef = ModelRef;

/// What one release leaves to the next.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    /// The clip norm of the round to come, where it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<ClipState>,
    /// Where the state of correlated noise lies. Secret: it takes the noise off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<BlobRef>,
    /// Where the server optimiser's state lies, if it keeps one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<BlobRef>,
    /// Where the centre of a rule that has one lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub centre: Option<BlobRef>,
    /// What clients are sent the newest model as, where it is not its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<Broadcast>,
}

impl Carried {
    /// The blobs that it names.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> {
        let states = [self.noise, self.optimizer, self.centre].into_iter().flatten().map(|blob| blob.digest);
        states.chain(self.broadcast.into_iter().flat_map(|broadcast| broadcast.blobs().collect::<Vec<_>>()))
    }

    pub(super) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A client's update that is durable and was validated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Whose.
    pub client: ClientId,
    /// Digest of its bytes in the blob store.
    pub blob: Digest,
    /// Its length.
    pub bytes: u64,
    /// How much it counts.
    pub weight: u32,
    /// Where it was asked and how it was sent, where it counts in whichever round it arrives in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// What an update was sent as, where it counts elsewhere and otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The round in which it was asked.
    pub round: Round,
    /// The attempt in which it was asked.
    pub attempt: Attempt,
    /// The weight that it was sent with.
    pub weight: u32,
}

impl Origin {
    pub(super) fn is_of(&self, about: &AttemptKey) -> bool {
        (self.round, self.attempt) == (about.round, about.attempt)
    }
}

impl Update {
    /// As it was sent: what was spooled under [`Self::asked_in`].
    pub fn as_sent(&self) -> Self {
        Self { weight: self.sent_weight(), origin: None, ..self.clone() }
    }

    /// The weight that it was sent with.
    pub fn sent_weight(&self) -> u32 {
        self.origin.map_or(self.weight, |origin| origin.weight)
    }

    /// The attempt in which it was asked, if it counts in `counted`.
    pub fn asked_in(&self, counted: &AttemptKey) -> AttemptKey {
        match self.origin {
            Some(origin) => key(&counted.job, origin.round, origin.attempt),
            None => counted.clone(),
        }
    }
}

/// The durable state of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobState {
    /// The newest model: the initial one, then each release.
    pub model: ModelRef,
    /// Rounds released so far.
    pub released: u32,
    /// What evaluators were asked and have not answered.
    #[serde(default)]
    pub measuring: Measuring,
    /// Who took part in which rounds, as far as the cohort's rule on participation asks for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub taken_part: BTreeMap<ClientId, History>,
    /// How measurements went, where the job stops early.
    #[serde(default, skip_serializing_if = "Progress::is_unknown")]
    pub progress: Progress,
    /// What the last release left to the next one.
    #[serde(default, skip_serializing_if = "Carried::is_nothing")]
    pub carried: Carried,
    /// Who is at work and what came in, where rounds are asynchronous.
    #[serde(default, skip_serializing_if = "Pool::is_empty")]
    pub pool: Pool,
    /// What is going on.
    pub phase: Phase,
}

/// What is going on in a job; each phase owns exactly what exists then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// No cohort yet.
    Offering(Offering),
    /// A cohort was asked; updates come in.
    Collecting(Collecting),
    /// An attempt is paid for; its buffer fills.
    Buffering(Buffering),
    /// The sum is being released.
    Releasing(Releasing),
    /// The new model is durable; it is being made known.
    Publishing(Publishing),
    /// All rounds are done; evaluators have their say on the last model.
    Closing(Closing),
    /// Over.
    Ended {
        /// How it ended.
        outcome: Outcome,
    },
}

impl JobState {
    /// A job that was just accepted.
    pub fn new(model: ModelRef, now_ms: u64) -> Self {
        let phase = Phase::Offering(Offering::first(now_ms));
        let (measuring, taken_part, carried) = (Measuring::default(), BTreeMap::new(), Carried::default());
        let (progress, pool) = (Progress::default(), Pool::default());
        Self { model, released: 0, measuring, taken_part, progress, carried, pool, phase }
    }

    /// The clip norm of the round under way, where it moves.
    pub fn clip_norm(&self, job: &Job) -> Option<f64> {
        job.clip_norm(self.carried.clip.as_ref())
    }

    /// The bound on the norm of the round's updates, as a norm and in units of the job's grid.
    pub fn norm_bound(&self, job: &Job) -> (f64, u64) {
        job.norm_bound(self.carried.clip.as_ref())
    }

    /// Whether a client may join a round by the rule on participation, if the job has one.
    pub(super) fn may_join(&self, client: &ClientId, round: Round, job: &Job) -> bool {
        job.spec().cohort.participation().is_none_or(|rule| {
            let history = self.taken_part.get(client).copied().unwrap_or_default();
            rule.may_join(&history, round.0).is_ok()
        })
    }

    /// The word used in listings.
    pub fn status(&self) -> &'static str {
        match &self.phase {
            Phase::Offering(_) => "waiting",
            Phase::Collecting(_) | Phase::Buffering(_) => "collecting",
            Phase::Releasing(_) | Phase::Publishing(_) => "releasing",
            Phase::Closing(_) => "closing",
            Phase::Ended { outcome } => outcome.status(),
        }
    }

    /// Whether an update of `client` for `about` may be taken in now, and until when: what can be said before its
    /// first byte. The machine has the last word when it is complete.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn expects(&self, id: &JobId, client: &ClientId, about: &AttemptKey) -> Result<Option<u64>, Refusal> {
        let asked = |round, attempt| *about == key(id, round, attempt);
        match &self.phase {
            Phase::Collecting(p) if asked(p.round, p.attempt) => match p.members.get(client) {
                None => Err(Refusal(format!("{client} was not asked in {about}"))),
                Some(Member { standing: Standing::Out(reason), .. }) => {
                    Err(Refusal(format!("round {} goes on without {client}: {reason}", p.round)))
                }
                Some(_) => Ok(Some(p.deadline_ms)),
            },
            // An update of asynchronous rounds is as good in one phase as in another.
            _ if self.held().any(|u| u.client == *client && u.origin.is_some_and(|o| o.is_of(about))) => {
                Ok(None)
            }
            _ if !self.pool.is_empty() => self.pool.expects(id, client, about).map(Some),
            // Its receipt may have been lost: the same bytes are acknowledged again.
            Phase::Releasing(p)
                if asked(p.round, p.attempt) && p.updates.iter().any(|u| u.client == *client) =>
            {
                Ok(None)
            }
            Phase::Ended { outcome } => Err(Refusal(format!("the job has ended ({})", outcome.status()))),
            _ => Err(Refusal(format!("{about} is over, or was never asked"))),
        }
    }

    /// Whether the release of this attempt is what the job waits for.
    pub fn is_releasing(&self, about: &AttemptKey) -> bool {
        matches!(&self.phase, Phase::Releasing(p) if *about == key(&about.job, p.round, p.attempt))
    }

    /// The length in bytes of the model with this digest, if `client` needs it now: to train from, or to measure.
    /// Other models are not for it.
    pub fn readable(&self, client: &ClientId, digest: &Digest) -> Option<u64> {
        let mut models = self.measuring.models(client);
        if self.attempt_of(client).is_some()
            && let Some(file) =
                super::broadcast::sent(self.model, self.carried.broadcast).find(|file| file.digest == *digest)
        {
            return Some(file.bytes);
        }
        if let Some(file) = self.pool.files(client).find(|file| file.digest == *digest) {
            return Some(file.bytes);
        }
        models.find(|m| m.digest == *digest).map(|m| m.bytes)
    }

    /// Until when `client` has to deliver what it is asked to train now; none if it is not.
    pub fn deadline_of(&self, client: &ClientId) -> Option<u64> {
        self.attempt_of(client).map(|p| p.deadline_ms).or_else(|| self.pool.deadline_of(client))
    }

    /// Whether `client` is asked now: to train, or to measure.
    pub fn asks(&self, client: &ClientId) -> bool {
        self.attempt_of(client).is_some()
            || self.pool.files(client).next().is_some()
            || self.measuring.models(client).next().is_some()
    }

    /// The open attempt that `client` was asked for and is not out of.
    fn attempt_of(&self, client: &ClientId) -> Option<&Collecting> {
        let Phase::Collecting(p) = &self.phase else { return None };
        p.members.get(client).filter(|m| !matches!(m.standing, Standing::Out(_))).map(|_| p)
    }

    /// The blobs that a job which goes on like this needs.
    pub fn blobs(&self) -> Vec<Digest> {
        let mut blobs = vec![self.model.digest];
        blobs.extend(self.measuring.all_models().map(|m| m.digest));
        blobs.extend(self.carried.blobs());
        blobs.extend(self.pool.broadcasts().flat_map(|b| b.blobs().collect::<Vec<_>>()));
        blobs.extend(self.pool.models().map(|model| model.digest));
        blobs.extend(self.pool.waiting.iter().map(|u| u.blob));
        match &self.phase {
            Phase::Collecting(p) => blobs.extend(p.received().map(|u| u.blob)),
            Phase::Releasing(p) => blobs.extend(p.updates.iter().map(|u| u.blob)),
            Phase::Publishing(p) => blobs.push(p.model.digest),
            Phase::Offering(_) | Phase::Buffering(_) | Phase::Closing(_) | Phase::Ended { .. } => {}
        }
        blobs
    }

    /// Whether nothing will happen any more.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    /// When [`Input::Tick`](super::Input::Tick) is due next, if ever.
    pub fn wake_at_ms(&self, job: &Job) -> Option<u64> {
        let phase = match &self.phase {
            Phase::Offering(p) => Some(p.wake_at_ms(job)),
            Phase::Collecting(p) => Some(p.wake_at_ms(job)),
            Phase::Buffering(p) => p.wake_at_ms(job),
            Phase::Closing(p) => Some(p.deadline_ms),
            Phase::Releasing(_) | Phase::Publishing(_) | Phase::Ended { .. } => None,
        };
        let pool = self.pool.wake_at_ms(job.spec().deadlines.reconnect_ms());
        phase.into_iter().chain(pool).min()
    }
}
