//! `moim serve`: one node, until it is told to stop.

use std::io::IsTerminal;

use clap::Args;
use moim::{
    config::{Auth, Config, LogFormat},
    node::ExitReason,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

use super::{Failure, settings::SettingsArgs};

/// A supervisor should not start it again.
const REMOVED: &str = "this node was removed from its cluster, and its id is never used again. To bring this machine back as a \
                       new node, move its data folder away and start it again";

#[derive(Args)]
#[command(after_help = "\
Each setting can be a flag, a variable (--drain-window is MOIM_DRAIN_WINDOW) or a key of the file (window in [drain]);
the first of these wins. SIGTERM moves the clients away and stops.

Examples:
  moim serve --auth open
  moim serve --auth open --name a --join a:3200,b:3200,c:3200 --expect 3 \\
             --peer 10.0.0.1:3200 --cluster-secret-file secret")]
pub struct Serve {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Stop when standard input ends: a parent that dies takes its nodes with it
    #[arg(long, hide = true)]
    parent_stdin: bool,
}

impl Serve {
    pub async fn run(self) -> Result<(), Failure> {
        let config = self.settings.read()?.finish()?;
        match config.auth {
            None => {
                return Err(Failure::Usage(
                    "choose how users are known: --auth open believes every client (for development), \
                     --auth jwt checks signed tokens"
                        .into(),
                ));
            }
            Some(Auth::Jwt) => {
                return Err(Failure::Usage("--auth jwt is not there yet; only --auth open works for now".into()));
            }
            Some(Auth::Open) => {}
        }
        let shutdown = stop_asked(self.parent_stdin)?;
        start_tracing(&config)?;
        match moim::node::run(config, moim::handlers::Handlers::default(), shutdown).await {
            Ok(ExitReason::Shutdown) => Ok(()),
            Ok(ExitReason::Removed) => Err(Failure::Unsafe(REMOVED.to_owned())),
            Ok(ExitReason::Unsafe(why)) => Err(Failure::Unsafe(why)),
            Err(moim_raft::error::Error::Refused(why)) => Err(Failure::Usage(why)),
            Err(error) => Err(Failure::failed(error)),
        }
    }
}

/// Ends with the first SIGTERM, SIGINT or, when asked for, end of standard input. Listens from the moment it is made, so
/// that a signal during start is not lost.
fn stop_asked(parent_stdin: bool) -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")));
    let (mut term, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
            () = stdin_ended(), if parent_stdin => {}
        }
    })
}

/// The parent never writes; whatever ends reading means that it is gone. A thread of its own, which ends with the process:
/// the runtime would wait for a read of its own to return before it lets the process go.
async fn stdin_ended() {
    let (sender, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = sender.send(());
    });
    let _ = ended.await;
}

fn start_tracing(config: &Config) -> Result<(), Failure> {
    // The store's own words for what it holds back; a filter that names the same target is the stronger one.
    let filter = EnvFilter::try_new(format!("{},{}", moim_raft::TRACE_FILTER, config.log.filter))
        .map_err(|error| Failure::Usage(format!("log.filter \"{}\": {error}", config.log.filter)))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::NONE)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.log.format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
