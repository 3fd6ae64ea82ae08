// Measurements of kratos' registry on etcd: its watcher, and its registrar.
package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	. "enlist/interop-go/common"
	"enlist/interop-go/common/bench"

	"github.com/go-kratos/kratos/contrib/registry/etcd/v2"
	"github.com/go-kratos/kratos/v2/registry"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var ctx = context.Background()

// Last list of each service. A program that uses it keeps it.
var lists sync.Map

// A client that is connected.
func client() *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: Endpoints(), DialTimeout: 5 * time.Second})
	Check(err)
	_, err = client.Get(ctx, "connected?")
	Check(err)
	return client
}

func follow(arguments []string) {
	found := etcd.New(client())
	view := bench.Follow(arguments[1])
	go func() {
		watcher, err := found.Watch(ctx, arguments[0])
		Check(err)
		for {
			instances, err := watcher.Next()
			Check(err)
			lists.Store(arguments[0], instances)
			addresses := make([]string, 0, len(instances))
			for _, instance := range instances {
				addresses = append(addresses, strings.TrimPrefix(instance.Endpoints[0], "grpc://"))
			}
			view.Show(len(addresses), bench.Marked(addresses))
		}
	}()
	view.Answer(nil)
}

// A registrar keeps the lease of its last registration apart, so each worker has one. They share a client.
func registrars(shared *clientv3.Client) func(service string, worker, number int) {
	var each [bench.AtOnce]*etcd.Registry
	for worker := range each {
		each[worker] = etcd.New(shared)
	}
	metadata := map[string]string{"zone": "eu-1", "team": "blue"}
	return func(service string, worker, number int) {
		Check(each[worker].Register(ctx, &registry.ServiceInstance{
			ID: fmt.Sprintf("i-%06d", number), Name: service, Version: "1.4", Metadata: metadata,
			Endpoints: []string{"grpc://" + bench.Address(number)},
		}))
	}
}

func register(arguments []string) {
	register := registrars(client())
	bench.Register(arguments[1], func(worker, number int) { register(arguments[0], worker, number) })
}

func steady(arguments []string) {
	shared := client()
	found := etcd.New(shared)
	bench.Steady(arguments, registrars(shared), func(service string, show func(count int)) {
		watcher, err := found.Watch(ctx, service)
		Check(err)
		go func() {
			for {
				instances, err := watcher.Next()
				Check(err)
				lists.Store(service, instances)
				show(len(instances))
			}
		}()
	})
}

func main() {
	bench.Measure(map[string]func([]string){"follow": follow, "register": register, "steady": steady})
}
