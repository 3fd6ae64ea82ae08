// What go-kit's `sd/etcdv3` offers: a registrar, an instancer, and its balancer with a gRPC transport.
package main

import (
	"context"
	"io"
	"net"
	"strings"
	"time"

	. "enlist/interop-go/common"

	"github.com/go-kit/kit/endpoint"
	"github.com/go-kit/kit/sd"
	"github.com/go-kit/kit/sd/etcdv3"
	"github.com/go-kit/kit/sd/lb"
	grpctransport "github.com/go-kit/kit/transport/grpc"
	"github.com/go-kit/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// Interval of checks whether an instance is known.
const pollInterval = 10 * time.Millisecond

func client() etcdv3.Client {
	client, err := etcdv3.NewClient(context.Background(), Endpoints(), etcdv3.ClientOptions{})
	Check(err)
	return client
}

func prefix(service string) string { return "/services/" + service + "/" }

// A server with its address as its value, or a registration of the value that is given.
func server(arguments []string) {
	value := ""
	if len(arguments) > 1 {
		value = arguments[1]
	} else {
		value = Serve().String()
	}
	registrar := etcdv3.NewRegistrar(client(), etcdv3.Service{
		Key:   prefix(arguments[0]) + strings.TrimPrefix(value, "http://"),
		Value: value,
		TTL:   etcdv3.NewTTLOption(time.Second, 5*time.Second),
	}, log.NewNopLogger())
	registrar.Register()
	Say("serves", value)
	Leave(registrar.Deregister)
}

// A registration that is overwritten with another address at each line.
func changing(arguments []string) {
	first, etcd := FreeAddress(), client()
	for _, address := range []string{first, Serve().String()} {
		service := etcdv3.Service{
			Key: prefix(arguments[0]) + first, Value: address, TTL: etcdv3.NewTTLOption(time.Second, 5*time.Second),
		}
		etcdv3.NewRegistrar(etcd, service, log.NewNopLogger()).Register()
		Say("serves", address)
		Line()
	}
}

// A server of the fleet: leaves, and finishes its calls, when it is terminated.
func member(arguments []string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Check(err)
	address, server := listener.Addr().String(), grpc.NewServer()
	Greet(server, address)
	go func() { Check(server.Serve(listener)) }()
	// The default TTL is 10 s, and a registration that lost its lease in an upgrade of etcd would stay away.
	ttl := etcdv3.NewTTLOption(3*time.Second, 30*time.Second)
	service := etcdv3.Service{Key: prefix(arguments[0]) + address, Value: address, TTL: ttl}
	registrar := etcdv3.NewRegistrar(client(), service, log.NewNopLogger())
	registrar.Register()
	Say("serves", address)
	Terminated()
	registrar.Deregister()
	server.GracefulStop()
}

// Registers an instance as it is given, for a comparison of the bytes.
func write(arguments []string) {
	given := Instance(arguments[0])
	value := given.Address(0) + given.Metadata["path"]
	if protocol := given.Endpoints[0].Protocol; protocol != "" {
		value = protocol + "://" + value
	}
	key := given.Option("prefix") + given.Service + "/" + given.ID
	Check(client().Register(etcdv3.Service{Key: key, Value: value}))
	Say("wrote")
	ReadToEnd()
}

// An endpoint that makes a health check at the instance.
func factory(instance string) (endpoint.Endpoint, io.Closer, error) {
	conn, err := grpc.Dial(instance, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	pass := func(_ context.Context, message interface{}) (interface{}, error) { return message, nil }
	call := grpctransport.NewClient(conn, "grpc.health.v1.Health", "Check", pass, pass, healthpb.HealthCheckResponse{})
	return call.Endpoint(), conn, nil
}

func follow(arguments []string) {
	instancer, err := etcdv3.NewInstancer(client(), prefix(arguments[0]), log.NewNopLogger())
	Check(err)
	events := make(chan sd.Event)
	go func() {
		var view View
		for event := range events {
			if event.Err != nil {
				Say("error", event.Err)
				continue
			}
			view.Show(append([]string(nil), event.Instances...))
		}
	}()
	instancer.Register(events)
	call := lb.Retry(100, 10*time.Second, lb.NewRoundRobin(sd.NewEndpointer(instancer, factory, log.NewNopLogger())))
	for {
		Line()
		answer, err := call(context.Background(), &healthpb.HealthCheckRequest{})
		if err != nil {
			Say("refused", err)
			continue
		}
		Say("answered", answer.(*healthpb.HealthCheckResponse).Status)
	}
}

// An endpoint that greets at the instance.
func greeter(instance string) (endpoint.Endpoint, io.Closer, error) {
	conn, err := grpc.Dial(instance, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	pass := func(_ context.Context, message interface{}) (interface{}, error) { return message, nil }
	return grpctransport.NewClient(conn, Greeter, Hello, pass, pass, &HelloReply{}).Endpoint(), conn, nil
}

func call(arguments []string) {
	instancer, err := etcdv3.NewInstancer(client(), prefix(arguments[0]), log.NewNopLogger())
	Check(err)
	endpointer := sd.NewEndpointer(instancer, greeter, log.NewNopLogger())
	// It learns of the instances in the background.
	for found, _ := endpointer.Endpoints(); len(found) == 0; found, _ = endpointer.Endpoints() {
		time.Sleep(pollInterval)
	}
	hello := lb.Retry(3, 5*time.Second, lb.NewRoundRobin(endpointer))
	KeepCalling(func(ctx context.Context) (*HelloReply, error) {
		reply, err := hello(ctx, &HelloRequest{Value: "world"})
		if err != nil {
			return nil, err
		}
		return reply.(*HelloReply), nil
	})
}

func main() {
	Run(map[string]func([]string){
		"server": server, "changing": changing, "client": follow, "member": member, "call": call, "write": write,
	})
}
