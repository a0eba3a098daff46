//! Whether this node's settings are the cluster's.
//!
//! What bounds the replicated state is the same on all nodes: whoever leads has its own settings stored, and they hold for
//! all. A node with others would not be noticed before it leads, and then a smaller `history.size` deletes. So it says so, once
//! for each difference, as long as another node leads.

use std::time::Duration;

use moim_raft::{Store, command::Limits};

use crate::{
    config::{Config, History, Mid, Presence, keys},
    health,
};

/// The settings in [`Limits`].
const SHARED: [&str; 8] = [
    "history.size",
    "history.ttl",
    "history.bytes",
    "mid.window",
    "mid.per-user",
    "limits.rooms-per-user",
    "limits.sessions-per-user",
    "presence.limit",
];

/// What of these settings bounds the replicated state.
pub fn limits(config: &Config) -> Limits {
    Limits {
        history_size: config.history.size as u64,
        history_ttl_ms: config.history.ttl.as_millis() as u64,
        history_bytes: config.history.bytes as u64,
        mid_window_ms: config.mid.window.as_millis() as u64,
        mids_per_user: config.mid.per_user as u64,
        rooms_per_user: config.limits.rooms_per_user as u64,
        sessions_per_user: config.limits.sessions_per_user as u64,
        presence_limit: config.presence.limit as u64,
    }
}

/// The same settings with those bounds.
fn with(config: &Config, limits: &Limits) -> Config {
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let (ttl, window) = (Duration::from_millis(limits.history_ttl_ms), Duration::from_millis(limits.mid_window_ms));
    let mut config = config.clone();
    config.history = History { size: count(limits.history_size), ttl, bytes: count(limits.history_bytes) };
    config.mid = Mid { window, per_user: count(limits.mids_per_user) };
    config.limits.rooms_per_user = count(limits.rooms_per_user);
    config.limits.sessions_per_user = count(limits.sessions_per_user);
    config.presence = Presence { limit: count(limits.presence_limit), ..config.presence };
    config
}

/// Each setting that is another one in the cluster.
fn differences(own: &Config, clusters: &Limits) -> Vec<String> {
    let there = with(own, clusters);
    let shared = SHARED.iter().filter_map(|name| keys::find(name).ok());
    let shown = shared.map(|key| (key.name, (key.show)(own), (key.show)(&there)));
    shown
        .filter(|(_, own, there)| own != there)
        .map(|(name, own, there)| format!("{name} is {own} here and {there} there"))
        .collect()
}

/// What was said of it.
#[derive(Default)]
pub struct Agreement(Vec<String>);

impl Agreement {
    /// To be called again and again, once the node has caught up.
    pub fn look(&mut self, config: &Config, store: &Store) {
        let (own, clusters) = (limits(config), store.read(|state| state.limits().clone()));
        let differ = || clusters != own && clusters != Limits::UNBOUNDED;
        // A leader stores its own in a moment.
        let found = match differ() && health::leader(&store.status()) != Some(store.node()) {
            true => differences(config, &clusters),
            false => Vec::new(),
        };
        if !found.is_empty() && found != self.0 {
            tracing::warn!(
                "this node's settings are not the cluster's, which hold here too: {}. Its own would hold for all if it led: \
                 give all nodes the same",
                found.join(", ")
            );
        }
        self.0 = found;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_that_bounds_the_state_is_compared() {
        let own = Config::default();
        assert_eq!(differences(&own, &limits(&own)), [""; 0]);
        let there = Limits {
            history_size: 10,
            history_ttl_ms: 60_000,
            history_bytes: 1 << 20,
            mid_window_ms: 1,
            mids_per_user: 2,
            rooms_per_user: 3,
            sessions_per_user: 4,
            presence_limit: 5,
        };
        let found = differences(&own, &there);
        assert_eq!(found.len(), SHARED.len(), "{found:?}");
        assert_eq!(
            found[..3],
            [
                "history.size is 1000 here and 10 there",
                "history.ttl is 7d here and 1m there",
                "history.bytes is 4MiB here and 1MiB there"
            ]
        );
        assert_eq!(limits(&with(&own, &there)), there);
    }
}
