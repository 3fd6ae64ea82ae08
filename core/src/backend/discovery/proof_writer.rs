//! Writing side of a proof, for resolvers that use no [`Publisher`](crate::backend::Publisher), which contains one.

use crate::{discovery::freshness::Proof, runtime::clock::Moment};

/// The only writer of a [`Proof`]. All clones of the proof show its records.
#[derive(Debug)]
pub struct ProofWriter {
    proof: Proof,
}

impl ProofWriter {
    /// A writer of a proof that held at `moment`: the sending of the request whose response is shown.
    pub fn new(moment: Moment) -> Self {
        Self { proof: Proof::new(moment) }
    }

    /// Returns the proof.
    pub fn proof(&self) -> Proof {
        self.proof.clone()
    }

    /// Records that the state was right at `moment`, unless a later moment is known. Wakes no reader.
    pub fn renew(&self, moment: Moment) {
        self.proof.renew(moment);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_renewal_shows_in_clones_and_only_moves_forward() {
        let first = Moment::now();
        let writer = ProofWriter::new(first);
        let proof = writer.proof();
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = Moment::now();
        writer.renew(second);
        assert_eq!(second.since(first), Duration::from_secs(1));
        assert_eq!(proof.moment().since(first), second.since(first));
        writer.renew(first);
        assert_eq!(proof.moment().since(first), second.since(first));
    }
}
