// A server and a client of kitex with `registry-etcd`. They speak gRPC, which is one of kitex's protocols.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	. "enlist/interop-go/common"

	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/klog"
	"github.com/cloudwego/kitex/pkg/loadbalance"
	"github.com/cloudwego/kitex/pkg/loadbalance/lbcache"
	"github.com/cloudwego/kitex/pkg/registry"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/server"
	"github.com/cloudwego/kitex/transport"
	etcd "github.com/kitex-contrib/registry-etcd"
	"github.com/kitex-contrib/registry-etcd/retry"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// Times of the registry, unless the environment asks for those of the library.
const (
	// Interval at which the registry looks for its key; the default is 30 s.
	observeDelay = time.Second
	// Interval at which a client resolves again; the default is 5 s.
	refresh = 100 * time.Millisecond
	// Seconds that an instance outlives its program; the default is 60.
	ttl = "5"
)

func open(options ...etcd.Option) registry.Registry {
	if os.Getenv("ENLIST_INTEROP_KITEX_TIMES") == "default" {
		opened, err := etcd.NewEtcdRegistry(Endpoints(), options...)
		Check(err)
		return opened
	}
	Check(os.Setenv("KITEX_ETCD_REGISTRY_LEASE_TTL", ttl))
	often := retry.NewRetryConfig(retry.WithObserveDelay(observeDelay), retry.WithRetryDelay(observeDelay))
	opened, err := etcd.NewEtcdRegistryWithRetry(Endpoints(), often, options...)
	Check(err)
	return opened
}

// A registry that tells when the server has registered.
type announced struct {
	registry.Registry
	registered chan *registry.Info
}

func (a announced) Register(info *registry.Info) error {
	err := a.Registry.Register(info)
	if err == nil {
		a.registered <- info
	}
	return err
}

// A server of kitex, with its protocol for gRPC and its default weight.
func serve(arguments []string) {
	registered := announced{open(), make(chan *registry.Info, 1)}
	address, err := net.ResolveTCPAddr("tcp", FreeAddress())
	Check(err)
	serving := server.NewServer(
		server.WithServiceAddr(address),
		server.WithRegistry(registered),
		server.WithServerBasicInfo(&rpcinfo.EndpointBasicInfo{ServiceName: arguments[0]}),
	)
	Check(serving.RegisterService(healthInfo(), health.NewServer()))
	go func() { Check(serving.Run()) }()
	info := <-registered.registered
	Say("serves", info.Addr)
	// The server's Stop begins with this, and then ends the server while clients may still call it.
	Leave(func() { Check(registered.Deregister(info)) })
}

// A registration that is overwritten with another weight and other tags at a line.
func changing(arguments []string) {
	opened, address := open(), Serve()
	for _, info := range []registry.Info{
		{Weight: 10, Tags: map[string]string{"team": "blue"}},
		{Weight: 3, Tags: map[string]string{"team": "green"}},
	} {
		info.ServiceName, info.Addr = arguments[0], address
		Check(opened.Register(&info))
		Say("serves", address)
		Line()
	}
}

// A registration of an address at which another program serves, with its weight if that is not the default.
func publish(arguments []string) {
	opened := open()
	address, err := net.ResolveTCPAddr("tcp", arguments[1])
	Check(err)
	info := &registry.Info{ServiceName: arguments[0], Addr: address, Weight: 10}
	if len(arguments) > 2 {
		info.Weight, err = strconv.Atoi(arguments[2])
		Check(err)
	}
	Check(opened.Register(info))
	Say("published")
	Leave(func() { Check(opened.Deregister(info)) })
}

// A client of kitex, with its protocol for gRPC. What it finds is printed as its resolver returns it.
func follow(arguments []string) {
	resolver, err := etcd.NewEtcdResolver(Endpoints())
	Check(err)
	caller, err := client.NewClient(healthInfo(),
		client.WithDestService(arguments[0]),
		client.WithTransportProtocol(transport.GRPC),
		client.WithResolver(resolver),
		client.WithLoadBalancer(loadbalance.NewWeightedRoundRobinBalancer(), &lbcache.Options{RefreshInterval: refresh}),
	)
	Check(err)
	target := rpcinfo.NewEndpointInfo(arguments[0], "", nil, nil)
	find := func() ([]string, bool) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		found, err := resolver.Resolve(ctx, resolver.Target(ctx, target))
		var addresses []string
		for _, instance := range found.Instances {
			team, _ := instance.Tag("team")
			addresses = append(addresses, fmt.Sprintf("%s,weight=%d,team=%s", instance.Address(), instance.Weight(), team))
		}
		// A service without instances is an error.
		return addresses, err == nil || strings.HasPrefix(err.Error(), "no instance remains")
	}
	PollAndCall(find, func(ctx context.Context) (*healthpb.HealthCheckResponse, error) {
		request, answer := new(checkRequest), new(checkResponse)
		request.Message = new(healthpb.HealthCheckRequest)
		err := caller.Call(ctx, "Check", request, answer)
		return answer.Message, err
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
	Run(map[string]func([]string){
		"server": serve, "changing": changing, "client": follow, "write": write, "ipv6": unbracketed,
		"publish": publish,
	})
}
