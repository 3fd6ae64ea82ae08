// What go-micro's registry on etcd offers: registrations, and lists of nodes. go-micro has its own protocols, so the
// calls are made with grpc-go at the addresses that it finds.
package main

import (
	"errors"
	"time"

	. "enlist/interop-go/common"

	"github.com/go-micro/plugins/v4/registry/etcd"
	"go-micro.dev/v4/registry"
)

const (
	// Time that a node outlives its program; a server of go-micro has 90 s.
	ttl = 5 * time.Second
	// Interval at which a server registers again; a server of go-micro does so every 30 s.
	interval = time.Second
)

func open() registry.Registry { return etcd.NewRegistry(registry.Addrs(Endpoints()...)) }

// As a server of go-micro registers itself.
func service(name, version string, node *registry.Node) *registry.Service {
	nodes := []*registry.Node{node}
	return &registry.Service{Name: name, Version: version, Endpoints: []*registry.Endpoint{}, Nodes: nodes}
}

// A gRPC server that is registered as a server of go-micro is, again and again.
func server(arguments []string) {
	address := Serve().String()
	metadata := map[string]string{"protocol": "grpc", "registry": "etcd"}
	node := &registry.Node{Id: arguments[0] + "-" + address, Address: address, Metadata: metadata}
	registered, own := open(), service(arguments[0], "latest", node)
	Check(registered.Register(own, registry.RegisterTTL(ttl)))
	Say("serves", address)
	leave, left := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(left)
		for {
			select {
			case <-leave:
				return
			case <-time.After(interval):
				// The next one follows, whether or not this one succeeds.
				_ = registered.Register(own, registry.RegisterTTL(ttl))
			}
		}
	}()
	Leave(func() {
		close(leave)
		<-left
		Check(registered.Deregister(own))
	})
}

func follow(arguments []string) {
	found := open()
	Poll(func() ([]string, bool) {
		services, err := found.GetService(arguments[0])
		var addresses []string
		for _, service := range services {
			for _, node := range service.Nodes {
				addresses = append(addresses, node.Address)
			}
		}
		return addresses, err == nil || errors.Is(err, registry.ErrNotFound)
	})
}

// Registers a node as it is given, for a comparison of the bytes.
func write(arguments []string) {
	given := Instance(arguments[0])
	node := &registry.Node{Id: given.ID, Address: given.Address(0), Metadata: given.Metadata}
	Check(open().Register(service(given.Service, given.Version, node), registry.RegisterTTL(ttl)))
	Say("wrote")
	ReadToEnd()
}

func main() {
	Run(map[string]func([]string){"server": server, "client": follow, "write": write})
}
