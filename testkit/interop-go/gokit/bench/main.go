// Measurements of go-kit's `sd/etcdv3`: its instancer, and its balancer. Its client keeps one registration, so there is
// no measurement of many.
package main

import (
	"context"
	"io"
	"time"

	. "enlist/interop-go/common"
	"enlist/interop-go/common/bench"

	"github.com/go-kit/kit/endpoint"
	"github.com/go-kit/kit/sd"
	"github.com/go-kit/kit/sd/etcdv3"
	"github.com/go-kit/kit/sd/lb"
	"github.com/go-kit/log"
)

// Interval of checks whether all instances are known.
const pollInterval = 10 * time.Millisecond

// A client that is connected.
func client() etcdv3.Client {
	client, err := etcdv3.NewClient(context.Background(), Endpoints(), etcdv3.ClientOptions{})
	Check(err)
	_, err = client.GetEntries("connected?")
	Check(err)
	return client
}

func follow(arguments []string) {
	etcd := client()
	view := bench.Follow(arguments[1])
	go func() {
		instancer, err := etcdv3.NewInstancer(etcd, arguments[0], log.NewNopLogger())
		Check(err)
		events := make(chan sd.Event)
		go instancer.Register(events)
		for event := range events {
			Check(event.Err)
			view.Show(len(event.Instances), bench.Marked(event.Instances))
		}
	}()
	view.Answer(nil)
}

// An endpoint that is not called.
func factory(string) (endpoint.Endpoint, io.Closer, error) {
	return func(context.Context, interface{}) (interface{}, error) { return nil, nil }, nil, nil
}

func pick(arguments []string) {
	instancer, err := etcdv3.NewInstancer(client(), arguments[0], log.NewNopLogger())
	Check(err)
	endpointer := sd.NewEndpointer(instancer, factory, log.NewNopLogger())
	wanted := bench.Number(arguments[1])
	for found, _ := endpointer.Endpoints(); len(found) < wanted; found, _ = endpointer.Endpoints() {
		time.Sleep(pollInterval)
	}
	bench.Go()
	bench.Pick(arguments[2], arguments[3], func() func() {
		balancer := lb.NewRoundRobin(endpointer)
		return func() {
			_, err := balancer.Endpoint()
			Check(err)
		}
	})
}

func main() {
	bench.Measure(map[string]func([]string){"follow": follow, "pick": pick})
}
