//! Lines about the freshness of what is watched.

use enlist::{Freshness, with_causes};
use serde_json::{Value, json};

/// Freshness that was printed last; live at first.
#[derive(Debug)]
pub(crate) struct PrintedFreshness {
    is_live: bool,
}

impl Default for PrintedFreshness {
    fn default() -> Self {
        Self { is_live: true }
    }
}

impl PrintedFreshness {
    /// Returns the text and the object of the line to print; `None` if the freshness has not changed.
    pub(crate) fn change(&mut self, freshness: &Freshness) -> Option<(String, Value)> {
        let live = freshness.is_live();
        if std::mem::replace(&mut self.is_live, live) == live {
            return None;
        }
        let cause = match freshness {
            Freshness::Stale { cause, .. } => Some(with_causes(cause).to_string()),
            _ => None,
        };
        let text = match &cause {
            Some(cause) => format!("! not up to date: {cause}"),
            None => "! up to date again".to_owned(),
        };
        let age = freshness.age().as_secs_f64();
        Some((text, json!({ "event": "freshness", "live": live, "age_seconds": age, "cause": cause })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::{Error, Moment, Resolver as _, ServiceRef};
    use enlist_memory::MemoryStore;

    #[tokio::test]
    async fn only_a_change_of_freshness_is_printed() {
        let service = ServiceRef::parse("s").unwrap();
        let mut watcher = MemoryStore::new().client().watch(&service).await.unwrap();
        let live = watcher.next().await.unwrap().freshness;
        let stale = Freshness::Stale { proven: Moment::now(), cause: Error::Closed };
        let mut printed = PrintedFreshness::default();
        let mut text = |freshness| printed.change(freshness).map(|(text, _)| text);
        assert_eq!(text(&live), None);
        assert!(text(&stale).unwrap().starts_with("! not up to date: "));
        assert_eq!(text(&stale), None);
        assert_eq!(text(&live).as_deref(), Some("! up to date again"));
    }
}
