// What kitex's `registry-etcd` offers: a registry, and a resolver. kitex has its own protocols, so the calls are made
// with grpc-go at the addresses that it resolves.
package main

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	. "enlist/interop-go/common"

	"github.com/cloudwego/kitex/pkg/klog"
	"github.com/cloudwego/kitex/pkg/registry"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	etcd "github.com/kitex-contrib/registry-etcd"
	"github.com/kitex-contrib/registry-etcd/retry"
)

const (
	// Interval at which the registry looks for its key; the default is 30 s.
	observeDelay = time.Second
	// Seconds that an instance outlives its program; the default is 60.
	ttl = "5"
)

func open(options ...etcd.Option) registry.Registry {
	Check(os.Setenv("KITEX_ETCD_REGISTRY_LEASE_TTL", ttl))
	often := retry.NewRetryConfig(retry.WithObserveDelay(observeDelay), retry.WithRetryDelay(observeDelay))
	opened, err := etcd.NewEtcdRegistryWithRetry(Endpoints(), often, options...)
	Check(err)
	return opened
}

// A gRPC server that is registered as a server of kitex is, with kitex's default weight.
func server(arguments []string) {
	address := Serve()
	registered, info := open(), &registry.Info{ServiceName: arguments[0], Addr: address, Weight: 10}
	Check(registered.Register(info))
	Say("serves", address)
	Leave(func() { Check(registered.Deregister(info)) })
}

func follow(arguments []string) {
	resolver, err := etcd.NewEtcdResolver(Endpoints())
	Check(err)
	target := rpcinfo.NewEndpointInfo(arguments[0], "", nil, nil)
	Poll(func() ([]string, bool) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		found, err := resolver.Resolve(ctx, resolver.Target(ctx, target))
		var addresses []string
		for _, instance := range found.Instances {
			addresses = append(addresses, instance.Address().String())
		}
		// A service without instances is an error.
		return addresses, err == nil || strings.HasPrefix(err.Error(), "no instance remains")
	})
}

// Registers an instance as it is given, for a comparison of the bytes.
func write(arguments []string) {
	given := Instance(arguments[0])
	weight := 10
	if given.Weight != nil {
		weight = *given.Weight
	}
	address, err := net.ResolveTCPAddr("tcp", given.Address(0))
	Check(err)
	registered := open(etcd.WithEtcdServicePrefix(given.Option("prefix")))
	if address.IP.To4() == nil {
		// Without it, an address of IPv6 is stored without brackets.
		etcd.SetFixedAddress(registered, address)
	}
	info := &registry.Info{ServiceName: given.Service, Addr: address, Weight: weight, Tags: given.Metadata}
	Check(registered.Register(info))
	Say("wrote")
	ReadToEnd()
}

// Registers an address of IPv6, as kitex does it.
func unbracketed(arguments []string) {
	port, err := strconv.Atoi(arguments[1])
	Check(err)
	address := &net.TCPAddr{IP: net.ParseIP("::1"), Port: port}
	Check(open().Register(&registry.Info{ServiceName: arguments[0], Addr: address, Weight: 10}))
	Say("wrote")
	ReadToEnd()
}

func main() {
	klog.SetLevel(klog.LevelFatal)
	Run(map[string]func([]string){"server": server, "client": follow, "write": write, "ipv6": unbracketed})
}
