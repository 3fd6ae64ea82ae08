//! Limit of open files. Connections must not use it up: without a free descriptor the agent cannot connect to the store
//! again.

use std::io;

use enlist_agent::{DEFAULT_HTTP_CONNECTIONS, DEFAULT_XDS_STREAMS};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use super::file::{HttpSection, XdsSection};
use crate::output::{Output, To};

/// Files that are kept for the connections to the store, for listeners, and for what the process has open otherwise.
const RESERVE: usize = 128;

/// Raises the limit of open files as far as permitted, and lowers the limits of connections to it, with a message.
pub(super) fn fit(xds: &mut XdsSection, http: Option<&mut HttpSection>, output: Output) -> io::Result<()> {
    let files = raised();
    let streams = xds.max_streams.unwrap_or(DEFAULT_XDS_STREAMS);
    let connections = http.as_ref().map_or(0, |http| http.max_connections.unwrap_or(DEFAULT_HTTP_CONNECTIONS));
    let (max_streams, max_connections) = fitting(files, streams, connections);
    if (max_streams, max_connections) == (streams, connections) {
        return Ok(());
    }
    xds.max_streams = Some(max_streams);
    if let Some(http) = http {
        http.max_connections = Some(max_connections);
    }
    let text = format!("with {files} open files, at most {max_streams} streams and {max_connections} connections");
    output.line(To::Stderr, text, &json!({ "files": files, "streams": max_streams, "connections": max_connections }))
}

/// Raises the limit of open files to the highest that is permitted, and returns it.
fn raised() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let highest = Rlimit { current: limit.maximum, ..limit };
    let limit = if setrlimit(Resource::Nofile, highest).is_ok() { highest } else { limit };
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
    let part = |limit: usize| {
        let part = limit as u128 * free as u128 / wanted as u128;
        usize::try_from(part).unwrap_or(limit).max(limit.min(1))
    };
    (part(streams), part(connections))
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
        let files = raised();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
        assert_eq!(current.map_or(usize::MAX, |files| usize::try_from(files).unwrap()), files);
    }
}
