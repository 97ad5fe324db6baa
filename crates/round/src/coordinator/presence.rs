//! Who is there: a client may leave for a while and come back to the same work.

use super::Context;
use undertone_core::id::ClientId;

/// Why an attempt goes on without a client that is [`gone`].
pub(super) const GONE: &str = "its session broke and it did not come back in time";

/// Notes whether each of them is connected now; since when it is away stands beside it. Gives those who came back.
pub(super) fn note<'a>(
    clients: impl Iterator<Item = (&'a ClientId, &'a mut Option<u64>)>,
    ctx: &Context<'_>,
) -> Vec<ClientId> {
    let mut back = vec![];
    for (client, away_since_ms) in clients {
        match (ctx.is_connected(client), &*away_since_ms) {
            (false, None) => *away_since_ms = Some(ctx.now_ms),
            (true, Some(_)) => {
                *away_since_ms = None;
                back.push(client.clone());
            }
            _ => {}
        }
    }
    back
}

/// Whether a client that is away since then stays away for too long.
pub(super) fn gone(away_since_ms: Option<u64>, ctx: &Context<'_>) -> bool {
    away_since_ms.is_some_and(|since| ctx.now_ms >= since + ctx.job.spec().deadlines.reconnect_ms())
}
