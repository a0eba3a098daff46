//! How a store is put together: its files, Raft, and the tasks that live as long as it does; and how it enters its cluster.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use openraft::{Raft, storage::RaftLogStorage};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Config, Feeds, Inner, MEMBERS_TIMEOUT, Store};
use crate::{
    answers::Answers,
    base::{Base, Point},
    clock::Clock,
    consensus::{self, Consensus},
    divergence::Comparison,
    drive::Driver,
    duties::Duties,
    error::{Error, Result},
    form::{Former, Outcome},
    identity::Identity,
    log::Log,
    machine::{FEED_ENTRIES, Machine},
    members::{Members, Progress},
    net::{CallRequest, CallResponse, Heard, Leadership, Local, Network, Peers, RaftConsensus, clean, serve},
    propose::Proposals,
    raft::Peer,
    retention::Retention,
    snapshot::{self, Snapshots},
    space::Space,
    wal,
};

/// Ephemeral frames of other nodes that wait to be worked on; the next is dropped.
const BUS_FRAMES_MAX: usize = 4096;
/// Tunnels that wait to be taken over; one more is closed.
const TUNNELS_MAX: usize = 1024;
/// Between two rounds of a node that does not catch up.
const ENTER_RETRY: Duration = Duration::from_millis(200);

impl Store {
    /// Opens the data folder, answers peers on `listener`, and goes on by itself: forms or finds its cluster, catches up
    /// with it, starts its incarnation.
    ///
    /// # Errors
    /// `Refused` for a folder that is in use, damaged or foreign; `Fatal` when the disk fails.
    pub async fn open(config: Config, listener: TcpListener) -> Result<(Self, Feeds)> {
        let identity = Identity::open(&config.data)?;
        let space = Space::open(&config.data)?;
        let (node, used, marker) = (identity.node(), identity.is_used(), identity.marker());
        let peer = Peer { name: config.info.name.clone(), addr: config.info.peer.clone() };
        let levels = config.info.levels;
        let mut local = Local::new(identity, peer, config.secret.clone());
        local.levels = levels;
        let local = Arc::new(local);
        let snapshots = Snapshots::open(&config.data.join("snapshots"))?;
        let proposals = Arc::new(Proposals::default());
        let observed = proposals.observed.clone();
        let folder = config.data.join("log");
        if used && !wal::is_there(&folder)? {
            return Err(log_is_gone(&folder));
        }
        let log = Log::open(&folder, observed.syncs(crate::wal::Options::default()))?;
        // On a thread of its own: sled wants most of a stack to open, and whoever called us has used some of this one.
        let (folder, files) = (config.data.join("state"), snapshots.clone());
        let opening = tokio::task::spawn_blocking(move || Base::open(&folder, &files));
        let (base, found) = opening.await.map_err(Error::fatal)??;
        let checkpoint = found.point.as_ref().and_then(Point::index);
        marker.check_applied(&config.data, node, log.last_index().max(checkpoint).unwrap_or_default())?;
        let purged = purged(&log, checkpoint).await?;
        reaches_back_to(purged, checkpoint)?;
        cover(purged, &snapshots, &base).await?;
        clean(&config.data, checkpoint.unwrap_or_default())
            .map_err(|e| Error::fatal(format!("cannot tidy {}: {e}", config.data.display())))?;
        let (feed, plays) = mpsc::channel(FEED_ENTRIES);
        let (bus_feed, bus) = mpsc::channel(BUS_FRAMES_MAX);
        let (tunnel_feed, tunnels) = mpsc::channel(TUNNELS_MAX);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let opened = Machine::open(node, levels, base, found, snapshots.clone(), proposals.clone(), feed, stop.clone());
        let (machine, machine_gone) = opened?;
        let (replica, checkpoints) = (machine.replica(), machine.health());
        let state = replica.clone();
        local.ask_level(move || state.read(|state| state.level()));
        let network = Network::new(local.clone());
        let (transfers, acked, addressing) = (network.transfers(), network.acked(), network.clone());
        // Boxed: the future holds all of Raft by value, and so would everybody who waits for this one.
        let raft = Box::pin(Raft::build(
            node,
            Arc::new(consensus::settings(config.heartbeat, config.election)?),
            network,
            log.clone(),
            machine,
        ));
        let raft = raft.await.map_err(Error::fatal)?;
        raft.run();
        let heard = Heard::default();
        let consensus = Consensus::new(raft.clone(), heard.clone(), node, space);
        let members = consensus.clone();
        local.ask_addr(move |id| members.peer(id).map(|peer| peer.addr));
        let retention = Retention {
            node,
            consensus: consensus.clone(),
            log: log.clone(),
            snapshots,
            transfers,
            snapshot_every: config.snapshot_every,
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(retention.run()));
        tasks.spawn(stop.clone().run_until_cancelled_owned(marker.follow(node, replica.applied(), log.clone())));
        let peers = Arc::new(Peers::new(local.clone()));
        let clock = Arc::new(Clock::new(node, consensus.clone(), peers.clone()));
        let comparison = Arc::new(Comparison::new(node, consensus.clone(), peers.clone(), replica.clone()));
        let receiving = Arc::new(RaftConsensus::new(raft, heard, snapshot::check));
        let former = Arc::new(Former::new(local.clone(), peers.clone(), receiving.clone(), config.expect));
        let (started_now, started) = watch::channel(false);
        let (contact_now, contact) = watch::channel(None);
        let ask = Arc::new(OnceLock::new());
        let members = Arc::new(Members {
            node,
            consensus: consensus.clone(),
            clock: clock.clone(),
            replica: replica.clone(),
            proposals: proposals.clone(),
            peers: peers.clone(),
            acked,
            replace_after: config.replace_after,
            state: Progress::default(),
        });
        // A removed voter is still needed until Raft does without its vote.
        let (gone, without) = (replica.clone(), consensus.clone());
        local.shut_out(move |id| gone.read(|state| state.is_removed(id)) && without.does_without(id));
        let app = Arc::new(Answers {
            consensus: consensus.clone(),
            clock: clock.clone(),
            former: former.clone(),
            replica: replica.clone(),
            members: members.clone(),
            bus: bus_feed,
            tunnels: tunnel_feed,
            ask: ask.clone(),
        });
        tasks.spawn(serve(listener, local.clone(), receiving, app, stop.clone()));
        let duties = Duties {
            local: local.clone(),
            consensus: consensus.clone(),
            replica: replica.clone(),
            proposals: proposals.clone(),
            peers: peers.clone(),
            network: addressing,
            started: started.clone(),
            contact: contact_now,
            node_timeout: config.node_timeout,
            session_ttl: config.session_ttl,
            presence_grace: config.presence_grace,
            limits: config.limits.clone(),
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(duties.run()));
        tasks.spawn(stop.clone().run_until_cancelled_owned(members.clone().run()));
        let driver = Driver {
            local: local.clone(),
            consensus: consensus.clone(),
            clock: clock.clone(),
            peers: peers.clone(),
            proposals: proposals.clone(),
            replica: replica.clone(),
            info: config.info,
            started: started_now,
        };
        let inner = Inner {
            local,
            consensus,
            clock,
            comparison,
            members,
            peers,
            replica,
            proposals,
            log,
            machine_gone: Mutex::new(Some(machine_gone)),
            checkpoints,
            fatal: watch::channel(None).0,
            waiting: former.waiting(),
            entering: watch::Sender::default(),
            started,
            contact,
            ask,
            tasks,
            stop,
        };
        let store = Self(Arc::new(inner));
        // Its own cluster's nodes, which a list mostly names, are asked nothing for that: why one refuses is said elsewhere.
        let (looking, members) = (former.clone(), store.0.consensus.members());
        let is_member = |addr: &String| members.iter().any(|(_, peer)| peer.addr == *addr);
        let others: Vec<String> = config.join.iter().filter(|addr| !is_member(addr)).cloned().collect();
        let look = async move { looking.look_elsewhere(&others).await };
        store.0.tasks.spawn(store.0.stop.clone().run_until_cancelled_owned(look));
        let life = store.clone().live(former, config.join, driver);
        store.0.tasks.spawn(store.0.stop.clone().run_until_cancelled_owned(life));
        let watched = store.clone();
        let watch = async move { watched.0.consensus.space.run(&watched).await };
        store.0.tasks.spawn(store.0.stop.clone().run_until_cancelled_owned(watch));
        let timed = store.clone();
        let compare = async move { timed.0.clock.run(&timed).await };
        store.0.tasks.spawn(store.0.stop.clone().run_until_cancelled_owned(compare));
        let comparison = store.0.comparison.clone();
        let compare = async move { comparison.run().await };
        store.0.tasks.spawn(store.0.stop.clone().run_until_cancelled_owned(compare));
        Ok((store, Feeds { plays, bus, tunnels }))
    }

    /// From an unknown node to one that drives its proposals.
    async fn live(self, former: Arc<Former>, join: Vec<String>, driver: Driver) {
        let why = match self.is_removed() {
            true => driver.leave().await,
            false => match self.enter(&former, &join).await {
                Ok(()) => driver.run().await,
                Err(e) => e,
            },
        };
        // Nobody carries proposals any more: those who wait, and those who come, are told at once.
        self.0.proposals.refuse(&why.to_string());
        self.0.fatal.send_replace(Some(why));
    }

    async fn enter(&self, former: &Former, join: &[String]) -> Result<()> {
        if let Outcome::Found { cluster, members } = former.run(join).await? {
            tracing::info!(%cluster, voters = members.len(), "forming the cluster");
            let members: std::collections::BTreeMap<_, Peer> = members.into_iter().collect();
            match self.0.consensus.raft.initialize(members).await {
                Ok(()) => {}
                // An earlier try got through.
                Err(openraft::errors::RaftError::APIError(_)) => {}
                Err(e) => return Err(Error::fatal(e)),
            }
        }
        // Nothing older than what this node served before its restart. openraft's own wait for it is over only when the log
        // has no uncommitted end, which under load may never be seen.
        while let Err(e) = self.caught_up(join).await {
            // The leader may know better.
            let why = self.own_note().await.unwrap_or_else(|| e.why().to_owned());
            if self.0.entering.send_replace(why.clone()) != why {
                tracing::warn!("still catching up with what was committed before the start: {why}");
            }
            tokio::time::sleep(ENTER_RETRY).await;
        }
        self.0.entering.send_replace(String::new());
        // Before anybody can take this node for ready.
        self.0.clock.look().await;
        Ok(())
    }
}

impl Store {
    async fn caught_up(&self, join: &[String]) -> Result<()> {
        self.announce(join).await?;
        self.linearizable().await
    }

    /// Tells the leader how this node is called, and where it is, when the cluster knows it otherwise: it was started with
    /// another name or peer address. Whoever else hears it looks for the node there meanwhile.
    ///
    /// # Errors
    /// Why the leader does not take that, or that none is found.
    async fn announce(&self, join: &[String]) -> Result<()> {
        let (me, peer) = (self.node(), &self.0.local.peer);
        let Some(known) = self.0.consensus.peer(me).filter(|known| known != peer) else { return Ok(()) };
        let moved = |()| tracing::info!("the cluster knew this node as {known}, and knows it as {peer} now");
        let mut why = format!("the cluster knows this node as {known}, and no leader hears that it is {peer} now");
        if let Leadership::Leader(taken) = self.0.members.take_in(me, peer.clone()).await {
            return taken.map(moved).map_err(Error::refused);
        }
        let others = self.0.consensus.members().into_iter().filter(|(id, _)| *id != me).map(|(_, other)| other.addr);
        let addrs: BTreeSet<String> = others.chain(join.iter().cloned()).collect();
        let request = CallRequest::Join { id: me, peer: peer.clone() };
        for addr in addrs {
            match self.0.peers.call_addr(&addr, &request, MEMBERS_TIMEOUT).await {
                Ok(CallResponse::Join(Leadership::Leader(taken))) => return taken.map(moved).map_err(Error::refused),
                Ok(_) => {}
                Err(e) if !why.contains(e.why()) => why = format!("{why}; {}", e.why()),
                Err(_) => {}
            }
        }
        Err(Error::unavailable(why))
    }

    /// What the leader says of this node, if it is a voter. What a learner waits for is told elsewhere.
    async fn own_note(&self) -> Option<String> {
        let members = self.members().await.ok()?;
        members.into_iter().find(|member| member.node == self.node() && member.voter)?.note
    }
}

/// A node without its log would vote again, and make others believe that nobody has what it had acknowledged.
fn log_is_gone(folder: &Path) -> Error {
    Error::refused(format!(
        "the log in {} is gone, and with it what this node voted and acknowledged. Restore it, or move the whole data folder \
         away: then the node joins its cluster as a new one",
        folder.display()
    ))
}

/// The last entry that the log will not have when Raft begins. A crash can leave a checkpoint of entries that were applied before
/// they were on this disk: the log is purged up to there then.
async fn purged(log: &Log, applied: Option<u64>) -> Result<Option<u64>> {
    let state = log.clone().get_log_state().await.map_err(Error::fatal)?;
    let last = state.last_log_id.map(|id| id.index);
    Ok(if last < applied { applied } else { state.last_purged_log_id.map(|id| id.index) })
}

/// What was purged from the log must be in the checkpoint, or in the snapshot that it was rebuilt from.
fn reaches_back_to(purged: Option<u64>, applied: Option<u64>) -> Result<()> {
    match purged {
        Some(purged) if applied < Some(purged) => Err(Error::refused(format!(
            "neither the checkpoint nor a snapshot is usable, and the log begins after {purged}: \
             remove this node's data folder and let it join again"
        ))),
        _ => Ok(()),
    }
}

/// Raft counts on a snapshot of what was purged: a node that lacks it is sent the newest, and goes on from there with the log.
/// Where that one is gone or damaged, the checkpoint is what is left of it.
async fn cover(purged: Option<u64>, snapshots: &Snapshots, base: &Base) -> Result<()> {
    let newest = snapshots.newest_header().and_then(|(_, point)| point.index());
    if newest < purged {
        tracing::warn!(
            ?newest,
            ?purged,
            "no snapshot reaches to where the log begins; one is written of the checkpoint"
        );
        base.snapshot().await.map_err(Error::fatal)??;
    }
    Ok(())
}
