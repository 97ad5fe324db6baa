//! What a coordinator does all the time to be one of several: says that it is there, hears of changes, takes what nobody drives.

use super::forwarded::{Answered, Forwarded};
use super::sums::releasing;
use super::{Fleet, HEARD_IN, LEASE, Queues, RENEWAL, Seat, Taken, Todo};
use crate::coordinator::Shared;
use crate::driver::{self, FIRST_PAUSE, Handle, LoadedJob, Snapshot, with_document};
use crate::ledger::LedgerFault;
use crate::spool;
use crate::storage;
use crate::sweep;
use prost::Message as _;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use undertone::Fault;
use undertone::v1;
use undertone_core::id::{AttemptKey, JobId};
use undertone_round::coordinator::{Input, JobState, Phase};
use undertone_store::fleet::{Asked, JobStanding, Mail, Note, SessionRow};
use undertone_store::{JobRecord, Lease, SqlStore, Store as _, StoreError};

/// Questions, and pieces of mail, that are taken at once.
const PAGE: u32 = 1024;
/// The shortest time from one look to the next; longer ones where looking takes long.
const REST: Duration = Duration::from_millis(10);
/// More changes of sessions than these, and all are read.
const SOME: usize = 64;
/// How often everything is looked at that nobody told of.
const EVERYTHING: Duration = Duration::from_secs(15);
/// How often what is left of others is tidied away, and what nothing refers to is looked for in the bucket.
const TIDY: Duration = Duration::from_secs(60);
const SWEEP: Duration = Duration::from_secs(3600);

/// Does all that, until the daemon shuts down.
pub(crate) fn keep(shared: &Arc<Shared>, fleet: &Arc<Fleet>) {
    let Some(Queues { mail, answers, standings }) =
        fleet.queues.lock().expect("no panic while locked").take()
    else {
        return;
    };
    // Until this coordinator leaves: those that wait here for an answer still get it.
    tokio::spawn(renew(shared.clone(), fleet.clone()));
    tokio::spawn(hear(fleet.clone()));
    tokio::spawn(look(shared.clone(), fleet.clone()));
    tokio::spawn(write_mail(shared.clone(), fleet.clone(), mail));
    tokio::spawn(write_answers(shared.clone(), fleet.clone(), answers));
    tokio::spawn(write_standings(shared.clone(), fleet.clone(), standings));
}

/// Says again and again that we are there. Once that was not heard for as long as a lease lasts, others may have taken over: then
/// this coordinator must not keep participants to itself.
async fn renew(shared: Arc<Shared>, fleet: Arc<Fleet>) {
    let mut heard = Instant::now();
    let here = SqlStore::replica_lease(&fleet.me);
    loop {
        tokio::select! {
            () = tokio::time::sleep(RENEWAL) => {}
            () = fleet.left() => return,
        }
        let asked = Instant::now();
        let renewed = tokio::time::timeout(HEARD_IN, async {
            let held = fleet.store.renew_leases(&fleet.me, LEASE).await?;
            if !held.iter().any(|(name, _)| *name == here) && !*fleet.has_left.borrow() {
                // It was away for so long that it was tidied away.
                storage::enter(&fleet.store, &fleet.me).await?;
            }
            Ok::<_, StoreError>(held)
        });
        let why = match renewed.await {
            Ok(Ok(held)) => {
                // Also after a pause of this process: whoever was connected may have been given up by all others.
                if heard.elapsed() >= LEASE {
                    shared.sessions.close_all("the coordinator was away");
                }
                heard = asked;
                for (name, lease) in fleet.compare(&held, asked) {
                    tracing::warn!(name, "giving up the lease of a job that nobody here drives");
                    if let Err(e) = fleet.store.end_lease(&name, &lease).await {
                        tracing::warn!(error = %e, "cannot give it up yet");
                    }
                }
                if !fleet.in_reach.send_replace(true) {
                    tracing::info!("the database is in reach again");
                    fleet.heard(Note::Missed);
                }
                continue;
            }
            Ok(Err(e)) => e.to_string(),
            Err(_) => format!("no answer within {} s", HEARD_IN.as_secs()),
        };
        tracing::warn!(why, "cannot tell others that this coordinator is there");
        if heard.elapsed() >= LEASE && fleet.in_reach.send_replace(false) {
            tracing::error!("the database is out of reach: participants are sent to other coordinators");
            shared.sessions.close_all("the coordinator does not reach its database");
        }
    }
}

/// Hears of changes. Whenever a connection is made anew, all may have been missed.
async fn hear(fleet: Arc<Fleet>) {
    let mut listener = None;
    loop {
        let hearing = async {
            match &mut listener {
                Some(listener) => undertone_store::Listener::next(listener).await,
                None => {
                    listener = Some(fleet.store.listen().await?);
                    Ok(Note::Missed)
                }
            }
        };
        let heard = tokio::select! {
            heard = hearing => heard,
            () = fleet.left() => return,
        };
        match heard {
            Ok(note) => fleet.heard(note),
            Err(e) => {
                tracing::warn!(error = %e, "cannot hear of other coordinators; looking every few seconds meanwhile");
                listener = None;
                tokio::select! {
                    () = tokio::time::sleep(RENEWAL) => {}
                    () = fleet.left() => return,
                }
            }
        }
    }
}

/// When what is done now and then was done last.
struct Done {
    everything: Instant,
    tidied: Instant,
    swept: Instant,
}

/// Looks where something changed, and everywhere now and then.
async fn look(shared: Arc<Shared>, fleet: Arc<Fleet>) {
    let now = Instant::now();
    let mut done = Done { everything: now, tidied: now, swept: now };
    fleet.heard(Note::Missed);
    let mut tick = tokio::time::interval(RENEWAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let ticked = tokio::select! {
            _ = tick.tick() => true,
            () = fleet.wake.notified() => false,
            () = fleet.left() => return,
        };
        let mut todo = std::mem::take(&mut *fleet.todo());
        if ticked {
            (todo.mail, todo.answers, todo.leases) = (true, true, true);
            todo.inboxes.extend(fleet.seats().keys().cloned());
            todo.everything |= done.everything.elapsed() >= EVERYTHING;
        }
        let begun = Instant::now();
        if let Err(e) = look_at(&shared, &fleet, todo, ticked, &mut done).await {
            tracing::warn!(error = %e, "cannot see what other coordinators do; looking again");
            fleet.todo().everything = true;
        }
        tokio::time::sleep(REST.max(begun.elapsed() * 2)).await;
    }
}

async fn look_at(
    shared: &Arc<Shared>,
    fleet: &Arc<Fleet>,
    mut todo: Todo,
    ticked: bool,
    done: &mut Done,
) -> Result<(), StoreError> {
    if todo.everything {
        done.everything = Instant::now();
        todo.jobs.extend(fleet.store.open_jobs().await?.into_iter().map(|job| job.id));
        todo.jobs.extend(shared.jobs().into_keys());
        todo.inboxes.extend(fleet.seats().keys().cloned());
        (todo.mail, todo.answers, todo.leases, todo.enrolled) = (true, true, true, true);
    }
    // Who is there, before what a driver decides by it.
    look_at_sessions(shared, fleet, &todo, ticked).await?;
    for id in &todo.jobs {
        refresh(shared, id).await?;
    }
    if todo.answers {
        for (number, answer) in fleet.store.collect_answers(&fleet.me).await? {
            match serde_json::from_str::<Answered>(&answer) {
                Ok(answer) => fleet.answered(number, answer),
                Err(e) => tracing::error!(error = %e, answer, "a driver's answer cannot be read"),
            }
        }
    }
    if todo.mail {
        deliver(shared, fleet).await?;
    }
    if todo.leases && !shared.is_stopping() {
        take_free(shared, fleet).await?;
    }
    for id in &todo.inboxes {
        look_into_inbox(shared, fleet, id).await?;
    }
    if todo.enrolled {
        shared.read_evaluators().await?;
    }
    if done.tidied.elapsed() >= TIDY {
        done.tidied = Instant::now();
        fleet.store.tidy().await?;
    }
    if done.swept.elapsed() >= SWEEP {
        done.swept = Instant::now();
        sweep::forget_unfinished(&*shared.blobs).await;
        let fleet = fleet.clone();
        tokio::spawn(async move {
            if let Some(bucket) = &fleet.bucket
                && let Err(e) = sweep::bucket(&fleet.store, bucket, &fleet.me, sweep::OLD).await
            {
                tracing::warn!(error = e, "cannot sweep the bucket; another time");
            }
        });
    }
    Ok(())
}

async fn look_at_sessions(
    shared: &Arc<Shared>,
    fleet: &Fleet,
    todo: &Todo,
    ticked: bool,
) -> Result<(), StoreError> {
    // Before the rows are read: a session that is opened here later is newer than they are.
    let here = shared.sessions.numbers();
    if todo.everything || todo.sessions.len() > SOME {
        let opening = fleet.opening().clone();
        let there = fleet.store.replicas().await?;
        let (ours, others): (Vec<_>, Vec<_>) =
            fleet.store.sessions().await?.into_iter().partition(|row| row.replica == fleet.me);
        let others = others.into_iter().filter(|row| there.contains(&row.replica)).collect();
        shared.sessions.all_elsewhere(others, &here);
        // What could not be noted when it happened.
        for row in &ours {
            let is_opening = opening.contains(&row.number) || fleet.opening().contains(&row.number);
            if !is_opening && here.get(&row.client).is_none_or(|(number, _)| *number != row.number) {
                fleet.store.session_ended(&row.client, &fleet.me, row.number).await?;
            }
        }
        let noted: HashSet<u64> = ours.iter().map(|row| row.number).collect();
        let now = shared.sessions.numbers();
        for (client, (number, role)) in here.iter().filter(|(_, (number, _))| !noted.contains(number)) {
            if now.get(client).is_some_and(|(still, _)| still == number) {
                let (client, replica) = (client.clone(), fleet.me.clone());
                let row = SessionRow { client, role: *role, replica, number: *number };
                fleet.store.session_opened(&row).await?;
            }
        }
        return Ok(());
    }
    for client in &todo.sessions {
        let row = fleet.store.session(client).await?;
        let here = here.get(client).map(|(number, _)| *number);
        shared.sessions.elsewhere(client, row.filter(|row| row.replica != fleet.me), here);
    }
    if ticked {
        shared.sessions.only_of(&fleet.store.replicas().await?);
    }
    Ok(())
}

/// Looks at a job that is driven elsewhere, if it moved.
pub(crate) async fn refresh(shared: &Arc<Shared>, id: &JobId) -> Result<(), StoreError> {
    let known = shared.job(id);
    if known.as_ref().is_some_and(Handle::is_here) {
        return Ok(());
    }
    let Some(record) = shared.store.job(id).await? else { return Ok(()) };
    match known {
        None if record.ended => shared.forget_job(id),
        Some(handle) if record.version <= handle.snapshot().version => {}
        _ => {
            if let Some(loaded) = load(shared, record).await? {
                show(shared, loaded).await;
            }
        }
    }
    if let (Some(fleet), Some(handle)) = (&shared.fleet, shared.job(id)) {
        let JobStanding { halted, waits_for } = fleet.store.standing(id).await?;
        if handle.show_halted(halted) {
            shared.note_fault(id, waits_for);
        }
    }
    Ok(())
}

/// Reads a job, with what it has spent by now. `None`: this version cannot read it, which is noted.
async fn load(shared: &Arc<Shared>, record: JobRecord) -> Result<Option<LoadedJob>, StoreError> {
    let id = record.id.clone();
    let mut chain = shared.ledger.lock().await;
    match shared.ledger.catch_up(&mut chain, &*shared.store).await {
        Ok(()) => {}
        Err(LedgerFault::Store(e)) => return Err(e),
        Err(LedgerFault::Damaged(reason)) => {
            drop(chain);
            shared.note_unreadable(&id, reason);
            return Ok(None);
        }
    }
    let ledger = chain.job(&id);
    drop(chain);
    match driver::load(ledger, record).await {
        Ok(loaded) => Ok(Some(loaded)),
        Err(e) => {
            shared.note_unreadable(&id, e.to_string());
            Ok(None)
        }
    }
}

/// Shows what another coordinator made of a job.
async fn show(shared: &Arc<Shared>, loaded: LoadedJob) {
    let id = loaded.id.clone();
    let Some(handle) = shared.job(&id) else {
        if !loaded.state.is_over() {
            shared.follow(&loaded);
        }
        return;
    };
    let after = Snapshot::of(&loaded);
    let over = after.state.is_over();
    // Of several looks at once one shows it.
    let Some(before) = handle.show(after.clone()) else { return };
    let (was, is) = (attempt(&id, &before.state), attempt(&id, &after.state));
    let released = after.state.released > before.state.released;
    let to_sum = releasing(&handle, &after.state)
        .filter(|(key, _)| releasing(&handle, &before.state).is_none_or(|(was, _)| was != *key));
    if let (Some((key, updates)), Some(fleet)) = (to_sum, &shared.fleet) {
        tokio::spawn(fleet.clone().help(shared.clone(), handle.clone(), key, updates));
    }
    // Halves of uploads for an attempt that is over are of no use to anybody.
    if let Some(key) = was.filter(|was| is.as_ref() != Some(was))
        && let Err(e) = spool::abandon(&key, &shared.unfinished, &shared.blobs).await
    {
        tracing::warn!(error = %e, "cannot delete the unfinished uploads of a closed attempt");
    }
    let sent = if released { handle.sent.swap(0, Ordering::Relaxed) } else { 0 };
    if let Some(fleet) = shared.fleet.as_ref().filter(|_| sent > 0)
        && let Err(e) = fleet.tell_sent(&id, sent).await
    {
        handle.sent.fetch_add(sent, Ordering::Relaxed);
        tracing::warn!(error = %e, "cannot tell a job's driver what was sent");
    }
    if over {
        shared.ledger.close(&id).await;
        shared.forget_job(&id);
    }
}

/// The attempt that uploads come for.
fn attempt(id: &JobId, state: &JobState) -> Option<AttemptKey> {
    match &state.phase {
        Phase::Collecting(p) => Some(AttemptKey { job: id.clone(), round: p.round, attempt: p.attempt }),
        _ => None,
    }
}

/// Tells participants here what drivers elsewhere have for them. What is told twice does no harm.
async fn deliver(shared: &Arc<Shared>, fleet: &Fleet) -> Result<(), StoreError> {
    loop {
        let mail = fleet.store.mail(&fleet.me, PAGE).await?;
        let more = mail.len() == PAGE as usize;
        let (mut delivered, mut outcome) = (vec![], Ok(()));
        for (id, Mail { client, job, version, message }) in mail {
            // Whoever is asked may fetch what it is asked about: that must be known here before.
            if shared.job(&job).is_none_or(|handle| handle.snapshot().version < version)
                && let Err(e) = refresh(shared, &job).await
            {
                outcome = Err(e);
                break;
            }
            delivered.push(id);
            let Some(handle) = shared.job(&job) else { continue };
            let message = data_encoding::BASE64
                .decode(message.as_bytes())
                .map_err(|e| e.to_string())
                .and_then(|bytes| v1::ServerMessage::decode(&bytes[..]).map_err(|e| e.to_string()));
            match message {
                Ok(v1::ServerMessage { kind: Some(kind) }) => {
                    shared.sessions.send(&client, with_document(kind, &handle));
                }
                Ok(_) => {}
                Err(e) => {
                    tracing::error!(error = e, "what another coordinator has for a client cannot be read")
                }
            }
        }
        fleet.store.mail_delivered(&delivered).await?;
        outcome?;
        if !more {
            return Ok(());
        }
    }
}

/// Takes jobs that nobody drives: a fair share at once, one at a time beyond.
async fn take_free(shared: &Arc<Shared>, fleet: &Arc<Fleet>) -> Result<(), StoreError> {
    let (open, mine) = (shared.jobs().len(), fleet.seats().len());
    let coordinators = fleet.store.replicas().await?.len().max(1);
    let limit = open.div_ceil(coordinators).saturating_sub(mine).max(1) as u32;
    // Another version may be able to read them.
    let unreadable = shared.unreadable_jobs();
    let taken = fleet.store.take_jobs(&fleet.me, LEASE, limit, &unreadable).await?;
    // All of them first: reading a job takes a while, and a lease without a seat is given up.
    let seats: Vec<_> = taken
        .into_iter()
        .filter_map(|(id, lease)| sit_down(fleet, &id, lease).map(|seat| (id, seat)))
        .collect();
    for (id, seat) in seats {
        match found(shared, &id).await {
            Ok(Some(loaded)) => shared.drive(loaded, seat, true),
            Ok(None) => seat.give_up().await,
            Err(e) => {
                tracing::warn!(job = %id, error = %e, "cannot drive a job yet");
                seat.give_up().await;
            }
        }
    }
    Ok(())
}

async fn found(shared: &Arc<Shared>, id: &JobId) -> Result<Option<LoadedJob>, StoreError> {
    match shared.store.job(id).await? {
        Some(record) if !record.ended => load(shared, record).await,
        _ => Ok(None),
    }
}

/// The seat of a lease that was just taken. `None`: somebody here sits on it already.
fn sit_down(fleet: &Arc<Fleet>, id: &JobId, lease: Lease) -> Option<Arc<Seat>> {
    let mut seats = fleet.seats();
    if seats.get(id).is_some_and(|taken| is_newer(&taken.seat, &lease)) {
        return None;
    }
    let seat = Seat::leased(fleet.store.clone(), id, lease);
    let taken = Taken { seat: seat.clone(), since: Instant::now() };
    if let Some(older) = seats.insert(id.clone(), taken) {
        older.seat.lose();
    }
    Some(seat)
}

/// Whether a seat is by this lease, or a later one.
fn is_newer(seat: &Seat, lease: &Lease) -> bool {
    seat.lease().is_some_and(|sits_by| sits_by.number >= lease.number)
}

/// Drives a job that was just submitted here, unless another coordinator was faster.
pub(crate) async fn adopt(shared: &Arc<Shared>, fleet: &Arc<Fleet>, loaded: LoadedJob) {
    let name = JobRecord::lease_name(&loaded.id);
    match fleet.store.take_lease(&name, &fleet.me, LEASE).await {
        Ok(lease) if lease.holder == fleet.me => match sit_down(fleet, &loaded.id, lease) {
            Some(seat) => shared.drive(loaded, seat, false),
            None => shared.follow(&loaded),
        },
        Ok(_) => shared.follow(&loaded),
        // Somebody takes it in a while, also if the lease is ours after all.
        Err(e) => {
            tracing::warn!(error = %e, job = %loaded.id, "cannot take the lease of a new job yet");
            shared.follow(&loaded);
        }
    }
}

/// Feeds a driver here what came for it at other coordinators.
async fn look_into_inbox(shared: &Arc<Shared>, fleet: &Arc<Fleet>, id: &JobId) -> Result<(), StoreError> {
    let Some(handle) = shared.job(id).filter(Handle::is_here) else { return Ok(()) };
    // What was answered before this look is not found by it.
    let answered = std::mem::take(&mut *fleet.answered_lately());
    fleet.in_hand().retain(|number| !answered.contains(number));
    for Asked { id: number, input } in fleet.store.asked(id, PAGE).await? {
        if !fleet.in_hand().insert(number) {
            continue;
        }
        let (fleet, handle) = (fleet.clone(), handle.clone());
        tokio::spawn(async move {
            match feed(&handle, &input).await {
                Some(answer) => {
                    let answer = serde_json::to_string(&answer).expect("plain data");
                    // It is let go of when the answer is written.
                    let _ = fleet.answers.send((number, answer));
                }
                // The next driver finds it.
                None => drop(fleet.in_hand().remove(&number)),
            }
        });
    }
    Ok(())
}

/// Feeds a driver here. `None`: it drives the job no longer.
async fn feed(handle: &Handle, input: &str) -> Option<Answered> {
    let input = match serde_json::from_str::<Forwarded>(input).map(Forwarded::into_input) {
        Ok(Ok(input)) => input,
        Ok(Err(sent)) => {
            handle.sent.fetch_add(sent, Ordering::Relaxed);
            return Some(Answered::new(Ok(())));
        }
        Err(e) => {
            tracing::error!(error = %e, input, "what another coordinator asks cannot be read");
            let text = format!("the coordinator that drives the job does not understand: {e}");
            return Some(Answered::new(Err(undertone::ApiError::new(Fault::Internal, text))));
        }
    };
    let blob = match &input {
        Input::Update { update, .. } => Some(update.blob),
        _ => None,
    };
    if !handle.is_here() {
        return None;
    }
    let answer = handle.feed(input).await;
    match &answer {
        Err(e) if e.fault == Fault::Unavailable && !handle.is_here() => return None,
        Err(e) if e.fault == Fault::NotNow => {
            if let Some(blob) = blob {
                handle.discard_refused(blob).await;
            }
        }
        _ => {}
    }
    Some(Answered::new(answer))
}

/// All that waits in a queue, at least one; `None` at its end.
async fn batch<T>(queue: &mut mpsc::UnboundedReceiver<T>) -> Option<Vec<T>> {
    let mut batch = vec![];
    (queue.recv_many(&mut batch, PAGE as usize).await > 0).then_some(batch)
}

async fn write_mail(
    shared: Arc<Shared>,
    fleet: Arc<Fleet>,
    mut queue: mpsc::UnboundedReceiver<(String, Mail)>,
) {
    while let Some(mail) = batch(&mut queue).await {
        let mut pause = FIRST_PAUSE;
        while let Err(e) = fleet.store.post(&mail).await {
            tracing::warn!(error = %e, "cannot tell participants at other coordinators; trying again");
            if shared.wait_or_stop(&mut pause).await.is_err() {
                return;
            }
        }
    }
}

async fn write_answers(
    shared: Arc<Shared>,
    fleet: Arc<Fleet>,
    mut queue: mpsc::UnboundedReceiver<(u64, String)>,
) {
    while let Some(answers) = batch(&mut queue).await {
        let mut pause = FIRST_PAUSE;
        while let Err(e) = fleet.store.answer(&answers).await {
            tracing::warn!(error = %e, "cannot answer other coordinators; trying again");
            if shared.wait_or_stop(&mut pause).await.is_err() {
                return;
            }
        }
        fleet.answered_lately().extend(answers.into_iter().map(|(number, _)| number));
    }
}

async fn write_standings(
    shared: Arc<Shared>,
    fleet: Arc<Fleet>,
    mut queue: mpsc::UnboundedReceiver<(JobId, JobStanding)>,
) {
    while let Some(standings) = batch(&mut queue).await {
        // The last word of each.
        let standings: BTreeMap<_, _> = standings.into_iter().collect();
        for (id, standing) in standings {
            let mut pause = FIRST_PAUSE;
            while let Err(e) = fleet.store.put_standing(&id, &standing).await {
                tracing::warn!(error = %e, "cannot tell other coordinators how a job stands; trying again");
                if shared.wait_or_stop(&mut pause).await.is_err() {
                    return;
                }
            }
        }
    }
}
