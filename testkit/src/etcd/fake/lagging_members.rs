//! Answers of members that lag, for defects of etcd that show them.

use etcd_client::proto::{PbRangeRequest, PbRangeResponse, PbTxnOpRequest, PbTxnRequest, PbTxnResponse};
use tonic::Status;

use super::{
    etcd_defects::EtcdDefect,
    store::{Lagging, Store},
};

impl Store {
    /// Gives the store a defect.
    pub(super) fn set_defect(&mut self, defect: EtcdDefect) {
        defect.release().clone_into(&mut self.version);
        self.defects.set(defect);
        match defect {
            EtcdDefect::StaleReads => self.lagging.paused = Some(self.content()),
            EtcdDefect::OldEvents => self.lagging.applied = self.revision,
            _ => {}
        }
    }

    /// Ends all defects.
    pub(super) fn mend(&mut self) {
        self.defects.mend();
        self.lagging = Lagging::default();
    }

    /// Returns the revision of the member that opens a watch. A member that lags catches up.
    pub(super) fn open_watch(&mut self) -> i64 {
        if !self.defects.has(EtcdDefect::OldEvents) {
            return self.revision;
        }
        std::mem::replace(&mut self.lagging.applied, self.revision).max(self.compacted)
    }

    /// Returns the store of the member that answers reads, if that is not this one.
    fn paused(&mut self) -> Option<Self> {
        let mut paused = Self::default();
        paused.replace(self.lagging.paused.clone()?);
        if paused.revision < self.revision {
            self.defects.note_shown(EtcdDefect::StaleReads);
        }
        Some(paused)
    }

    /// Answers a linearizable read.
    pub(super) fn read(&mut self, request: &PbRangeRequest) -> Result<PbRangeResponse, Status> {
        match self.paused() {
            Some(paused) => paused.range(request),
            None => self.range(request),
        }
    }

    /// Answers a transaction that only reads, if a paused member does. `None`: it is answered like any other.
    pub(super) fn read_only_txn(&mut self, request: &PbTxnRequest) -> Option<Result<PbTxnResponse, Status>> {
        let mut operations = request.success.iter().chain(&request.failure);
        let reads = operations.all(|operation| matches!(operation.request, Some(PbTxnOpRequest::RequestRange(_))));
        if !reads {
            return None;
        }
        Some(self.paused()?.txn(request.clone()))
    }
}
