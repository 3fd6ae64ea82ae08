// Marks the folder as a module. The versions are in the files that `-modfile` names.
module enlist/etcd-build

go 1.24
