// What go-kit's `sd/etcdv3` offers: a registrar, an instancer, and its balancer with a gRPC transport.
package main

import (
	"context"
	"io"
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

func main() {
	Run(map[string]func([]string){"server": server, "client": follow})
}
