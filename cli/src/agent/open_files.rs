//! Limit of open files. Connections must not use it up: without a free descriptor the agent cannot connect to the store
//! again.

use std::io;

use enlist_agent::{DEFAULT_HTTP_CONNECTIONS, DEFAULT_HTTP_EVENT_CLIENTS, DEFAULT_XDS_STREAMS};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use super::file::{HttpSection, XdsSection};
use crate::output::{Output, To};

/// Files that are kept for the connections to the store, for listeners, and for what the process has open otherwise.
const RESERVE: usize = 128;

/// Raises the limit of open files as far as needed and permitted. If that is too little, lowers the limits of
/// connections, with a message.
pub(super) fn fit(xds: &mut XdsSection, mut http: Option<&mut HttpSection>, output: Output) -> io::Result<()> {
    let streams = xds.max_streams.unwrap_or(DEFAULT_XDS_STREAMS);
    let connections = http.as_ref().map_or(0, |http| http.max_connections.unwrap_or(DEFAULT_HTTP_CONNECTIONS));
    let files = raised(streams.saturating_add(connections).saturating_add(RESERVE));
    let (max_streams, max_connections) = fitting(files, streams, connections);
    if (max_streams, max_connections) == (streams, connections) {
        return Ok(());
    }
    xds.max_streams = Some(max_streams);
    if let Some(http) = &mut http {
        http.max_connections = Some(max_connections);
        // Clients of events leave connections to the others, in the same proportion.
        let clients = http.max_event_clients.unwrap_or(DEFAULT_HTTP_EVENT_CLIENTS);
        http.max_event_clients = Some(proportion(clients, max_connections, connections));
    }
    let event_clients = http.and_then(|http| http.max_event_clients).unwrap_or(0);
    let text = format!(
        "with {files} open files, at most {max_streams} streams (configured: {streams}) and {max_connections} \
         connections (configured: {connections}), {event_clients} of them of event clients"
    );
    let fields = json!({
        "files": files, "streams": max_streams, "connections": max_connections, "event_clients": event_clients,
    });
    output.line(To::Stderr, text, &fields)
}

/// Raises the limit of open files to `needed`, or as far as permitted, and returns it.
fn raised(needed: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let needed = needed as u64;
    let current = limit.current.map(|files| files.max(limit.maximum.map_or(needed, |maximum| maximum.min(needed))));
    let raised = Rlimit { current, ..limit };
    let limit = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    // Without a value there is no limit.
    limit.current.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

/// Returns the limits of connections of both servers for a number of files: unchanged if they fit, otherwise in the
/// same proportion.
fn fitting(files: usize, streams: usize, connections: usize) -> (usize, usize) {
    let (free, wanted) = (files.saturating_sub(RESERVE), streams.saturating_add(connections));
    if wanted <= free {
        return (streams, connections);
    }
    (proportion(streams, free, wanted), proportion(connections, free, wanted))
}

/// Returns a limit in the proportion of `free` to `wanted`, but no zero.
fn proportion(limit: usize, free: usize, wanted: usize) -> usize {
    let part = limit as u128 * free as u128 / wanted.max(1) as u128;
    usize::try_from(part).unwrap_or(limit).max(limit.min(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_store() {
        for (files, wanted, expected) in [
            (65_536, (10_000, 2_000), (10_000, 2_000)),
            (12_000 + RESERVE, (10_000, 2_000), (10_000, 2_000)),
            (1_200 + RESERVE, (10_000, 2_000), (1_000, 200)),
            (1_200 + RESERVE, (10_000, 0), (1_200, 0)),
            (RESERVE, (10_000, 2_000), (1, 1)),
            (1_200 + RESERVE, (usize::MAX, 0), (1_200, 0)),
            (usize::MAX, (10_000, 2_000), (10_000, 2_000)),
        ] {
            assert_eq!(fitting(files, wanted.0, wanted.1), expected, "{files} {wanted:?}");
        }
    }

    #[test]
    fn the_limit_of_open_files_is_raised() {
        let before = getrlimit(Resource::Nofile);
        let (Some(current), Some(maximum)) = (before.current, before.maximum) else { return };
        let needed = (current + 1).min(maximum);
        assert_eq!(raised(usize::try_from(needed).unwrap()) as u64, needed);
        assert_eq!(getrlimit(Resource::Nofile).current, Some(needed));
        assert_eq!(raised(1) as u64, needed, "it is not lowered");
        assert_eq!(raised(usize::MAX) as u64, maximum);
    }
}
