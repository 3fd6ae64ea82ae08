// A service and a client of go-micro with its registry on etcd. They speak gRPC, by go-micro's plug-ins.
package main

import (
	"context"
	"errors"
	"time"

	. "enlist/interop-go/common"

	grpcclient "github.com/go-micro/plugins/v4/client/grpc"
	"github.com/go-micro/plugins/v4/registry/etcd"
	grpcserver "github.com/go-micro/plugins/v4/server/grpc"
	"go-micro.dev/v4"
	"go-micro.dev/v4/registry"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const (
	// Time that a node outlives its program; a server of go-micro has 90 s.
	ttl = 5 * time.Second
	// Interval at which a server registers again; a server of go-micro does so every 30 s.
	interval = time.Second
	// Time that a node is registered which no server registers again.
	unrenewed = time.Minute
)

func open() registry.Registry { return etcd.NewRegistry(registry.Addrs(Endpoints()...)) }

// As a server of go-micro registers itself.
func service(name, version string, node *registry.Node) *registry.Service {
	nodes := []*registry.Node{node}
	return &registry.Service{Name: name, Version: version, Endpoints: []*registry.Endpoint{}, Nodes: nodes}
}

// Health answers health checks. go-micro takes the name of the type for that of gRPC's service.
type Health struct{}

func (*Health) Check(_ context.Context, _ *healthpb.HealthCheckRequest, answer *healthpb.HealthCheckResponse) error {
	answer.Status = healthpb.HealthCheckResponse_SERVING
	return nil
}

// A service of go-micro, whose server registers again and again.
func serve(arguments []string) {
	ctx, cancel := context.WithCancel(context.Background())
	serves, left := make(chan string, 1), make(chan error)
	var service micro.Service
	service = micro.NewService(
		micro.Server(grpcserver.NewServer()),
		micro.Name(arguments[0]),
		micro.Address(FreeAddress()),
		micro.Registry(open()),
		micro.RegisterTTL(ttl),
		micro.RegisterInterval(interval),
		micro.Context(ctx),
		micro.HandleSignal(false),
		micro.AfterStart(func() error {
			serves <- service.Server().Options().Address
			return nil
		}),
	)
	Check(micro.RegisterHandler(service.Server(), new(Health)))
	go func() { left <- service.Run() }()
	Say("serves", <-serves)
	Leave(func() {
		cancel()
		Check(<-left)
	})
}

// A node that is overwritten with other metadata at each line. A server of go-micro could not be changed: it registers
// the node of its start again and again.
func changing(arguments []string) {
	opened, address := open(), Serve().String()
	for _, team := range []string{"blue", "green"} {
		node := &registry.Node{Id: address, Address: address, Metadata: map[string]string{"team": team}}
		Check(opened.Register(service(arguments[0], "", node), registry.RegisterTTL(unrenewed)))
		Say("serves", address)
		Line()
	}
}

// A client of go-micro. What it finds is printed as its registry returns it.
func follow(arguments []string) {
	found := open()
	service := micro.NewService(micro.Client(grpcclient.NewClient()), micro.Registry(found), micro.HandleSignal(false))
	caller := service.Client()
	find := func() ([]string, bool) {
		services, err := found.GetService(arguments[0])
		var addresses []string
		for _, service := range services {
			for _, node := range service.Nodes {
				addresses = append(addresses, node.Address+","+service.Version+",team="+node.Metadata["team"])
			}
		}
		return addresses, err == nil || errors.Is(err, registry.ErrNotFound)
	}
	PollAndCall(find, func(ctx context.Context) (*healthpb.HealthCheckResponse, error) {
		answer := new(healthpb.HealthCheckResponse)
		request := caller.NewRequest(arguments[0], "/grpc.health.v1.Health/Check", new(healthpb.HealthCheckRequest))
		return answer, caller.Call(ctx, request, answer)
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
	Run(map[string]func([]string){"server": serve, "changing": changing, "client": follow, "write": write})
}
