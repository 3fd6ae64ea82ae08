// The programs `etcd`, `etcdctl` and `etcdutl` in one, for the tests: it runs the one whose name it is started under.
//
// `cargo xtask etcd` builds it, with the versions that one of the `.mod` files beside it names:
//
//	go build -modfile 3.6.16.mod -o etcd .
package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
	"go.etcd.io/etcd/etcdutl/v3/etcdutl"
	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "etcdctl":
		ctlv3.MustStart()
	case "etcdutl":
		restore()
	default:
		etcdmain.Main(os.Args)
	}
}

// The main package of etcdutl cannot be imported. Of its commands the tests need the one that restores snapshots.
func restore() {
	root := &cobra.Command{Use: "etcdutl"}
	root.PersistentFlags().StringVarP(&etcdutl.OutputFormat, "write-out", "w", "simple", "")
	root.AddCommand(etcdutl.NewSnapshotCommand(), etcdutl.NewVersionCommand())
	if root.Execute() != nil {
		os.Exit(1)
	}
}
