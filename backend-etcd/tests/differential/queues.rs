//! Requests like those with which the backend reads and writes queues. Random choices rarely make them.

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp};

use super::{END, KEYS, watched::Change};

/// Kinds of these requests. Each has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Create,
    Confirm,
    HandOver,
    RemoveWithMark,
    RemoveUnderLease,
    AttachToLease,
    GrantPermits,
    LastEntries,
    FirstEntries,
    Keys,
}

pub(super) const SHAPES: [Shape; 10] = [
    Shape::Create,
    Shape::Confirm,
    Shape::HandOver,
    Shape::RemoveWithMark,
    Shape::RemoveUnderLease,
    Shape::AttachToLease,
    Shape::GrantPermits,
    Shape::LastEntries,
    Shape::FirstEntries,
    Shape::Keys,
];

impl Shape {
    /// Returns `true` if it is applied only under a condition.
    pub(super) fn is_guarded(self) -> bool {
        !matches!(self, Self::LastEntries | Self::FirstEntries | Self::Keys)
    }

    /// Returns the request, about the last states of two keys. Its condition holds if `is_current`.
    pub(super) fn request(self, [one, other]: [&Change; 2], lease: i64, is_current: bool) -> Txn {
        let wrong = i64::from(!is_current);
        let created = |of: &Change| Compare::create_revision(&*of.key, CompareOp::Equal, of.created + wrong);
        let unchanged = |of: &Change| Compare::mod_revision(&*of.key, CompareOp::Equal, of.revision + wrong);
        let rewrite = |of: &Change, lease| {
            TxnOp::put(&*of.key, "", Some(PutOptions::new().with_lease(lease).with_ignore_value()))
        };
        let entries =
            |order, limit| GetOptions::new().with_range(END).with_sort(SortTarget::Create, order).with_limit(limit);
        let read = |options| TxnOp::get(KEYS[0], Some(options));
        let (guards, ops) = match self {
            Self::Create => {
                let put = TxnOp::put(&*one.key, "one", Some(PutOptions::new().with_lease(lease)));
                let absent = Compare::create_revision(&*one.key, CompareOp::Equal, wrong);
                (vec![absent], vec![put, read(entries(SortOrder::Descend, 3))])
            }
            Self::Confirm => {
                let until_here = entries(SortOrder::Descend, 2).with_max_create_revision(one.created);
                (vec![created(one)], vec![rewrite(one, lease), read(until_here)])
            }
            Self::HandOver => {
                let delete = TxnOp::delete(&*one.key, None);
                (vec![created(one), created(other)], vec![delete, rewrite(other, lease)])
            }
            Self::RemoveWithMark => {
                let deletions = [one, other].map(|of| TxnOp::delete(&*of.key, None));
                (vec![created(one)], deletions.to_vec())
            }
            Self::RemoveUnderLease => {
                let under = Compare::lease(&*one.key, CompareOp::Equal, one.lease + wrong);
                (vec![under], vec![TxnOp::delete(&*one.key, None)])
            }
            Self::AttachToLease => (vec![unchanged(one)], vec![rewrite(one, lease)]),
            Self::GrantPermits => {
                let put = TxnOp::put(&*one.key, "two", Some(PutOptions::new().with_lease(lease)));
                (vec![created(one), unchanged(other)], vec![put])
            }
            Self::LastEntries => {
                let until_here = entries(SortOrder::Descend, 2).with_max_create_revision(one.created);
                (Vec::new(), vec![read(until_here)])
            }
            Self::FirstEntries => (Vec::new(), vec![read(entries(SortOrder::Ascend, 2))]),
            Self::Keys => {
                let keys = GetOptions::new().with_range(END).with_limit(3).with_keys_only();
                (Vec::new(), vec![read(keys)])
            }
        };
        let state = [one, other].map(|of| TxnOp::get(&*of.key, None));
        Txn::new().when(guards).and_then(ops).or_else(state)
    }
}
