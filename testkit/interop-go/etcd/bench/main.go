// Measurements of etcd's own Go client: as it is (`raw`), its naming endpoints, and its concurrency package.
package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	. "enlist/interop-go/common"
	"enlist/interop-go/common/bench"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// End of the key of the instance that changes.
	changing = "/i-000000"
	// Keys of a lease.
	keysPerLease = 1000
	// TTL in seconds: of many registrations, and of a process at rest, which is the default of `enlist`.
	longTTL, usualTTL = 60, 15
	// Calls until all instances are connected to.
	warmUp = 300
)

var ctx = context.Background()

// A client that is connected.
func client() *clientv3.Client {
	etcd, err := clientv3.New(clientv3.Config{Endpoints: Endpoints(), DialTimeout: 5 * time.Second})
	Check(err)
	_, err = etcd.Get(ctx, "connected?")
	Check(err)
	return etcd
}

// A map of keys and values, by a list and a watch from the next revision on.
func watchRaw(etcd *clientv3.Client, prefix string, show func(count int, mark string)) {
	found, mark := map[string]string{}, ""
	put := func(key, value string) {
		found[key] = value
		if strings.HasSuffix(key, changing) {
			mark = bench.Mark(value)
		}
	}
	list, err := etcd.Get(ctx, prefix, clientv3.WithPrefix())
	Check(err)
	for _, pair := range list.Kvs {
		put(string(pair.Key), string(pair.Value))
	}
	show(len(found), mark)
	for answer := range etcd.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(list.Header.Revision+1)) {
		Check(answer.Err())
		for _, event := range answer.Events {
			if event.Type == clientv3.EventTypeDelete {
				delete(found, string(event.Kv.Key))
			} else {
				put(string(event.Kv.Key), string(event.Kv.Value))
			}
		}
		show(len(found), mark)
	}
}

func followRaw(arguments []string) {
	etcd := client()
	view := bench.Follow(arguments[1])
	go watchRaw(etcd, arguments[0], view.Show)
	view.Answer(nil)
}

// A map of the endpoints, as their users keep it.
func watchNaming(manager endpoints.Manager, show func(count int, mark string)) {
	updates, err := manager.NewWatchChannel(ctx)
	Check(err)
	found, mark := map[string]endpoints.Endpoint{}, ""
	for batch := range updates {
		for _, update := range batch {
			if update.Op == endpoints.Delete {
				delete(found, update.Key)
				continue
			}
			found[update.Key] = update.Endpoint
			if strings.HasSuffix(update.Key, changing) {
				mark = update.Endpoint.Addr
			}
		}
		show(len(found), mark)
	}
}

func followNaming(arguments []string) {
	manager, err := endpoints.NewManager(client(), arguments[0])
	Check(err)
	view := bench.Follow(arguments[1])
	go watchNaming(manager, view.Show)
	view.Answer(nil)
}

// Leases for that many keys.
func leases(etcd *clientv3.Client, count int, ttl int64) []clientv3.LeaseID {
	var granted []clientv3.LeaseID
	for range (count + keysPerLease - 1) / keysPerLease {
		lease, err := etcd.Grant(ctx, ttl)
		Check(err)
		alive, err := etcd.KeepAlive(ctx, lease.ID)
		Check(err)
		go func() {
			for range alive {
			}
		}()
		granted = append(granted, lease.ID)
	}
	return granted
}

// Puts of typical values.
func putRaw(etcd *clientv3.Client, service string, number int, lease clientv3.LeaseID) {
	value := fmt.Sprintf(`{"endpoints":["grpc://%s"],"version":"1.4","zone":"eu-1","metadata":{"team":"blue"}}`,
		bench.Address(number))
	key := fmt.Sprintf("/services/%s/i-%06d", service, number)
	_, err := etcd.Put(ctx, key, value, clientv3.WithLease(lease))
	Check(err)
}

func registerRaw(arguments []string) {
	etcd := client()
	given := leases(etcd, bench.Number(arguments[1]), longTTL)
	bench.Register(arguments[1], func(_, number int) {
		putRaw(etcd, arguments[0], number, given[number/keysPerLease])
	})
}

func steadyRaw(arguments []string) {
	etcd := client()
	given := leases(etcd, bench.Number(arguments[2]), usualTTL)
	bench.Steady(arguments, func(service string, _, number int) {
		putRaw(etcd, service, number, given[number/keysPerLease])
	}, func(service string, show func(count int)) {
		go watchRaw(etcd, "/services/"+service+"/", func(count int, _ string) { show(count) })
	})
}

func addNaming(manager endpoints.Manager, service string, number int, lease clientv3.LeaseID) {
	metadata := map[string]string{"version": "1.4", "zone": "eu-1", "team": "blue"}
	endpoint := endpoints.Endpoint{Addr: bench.Address(number), Metadata: metadata}
	key := fmt.Sprintf("%s/i-%06d", service, number)
	Check(manager.AddEndpoint(ctx, key, endpoint, clientv3.WithLease(lease)))
}

func registerNaming(arguments []string) {
	etcd := client()
	given := leases(etcd, bench.Number(arguments[1]), longTTL)
	manager, err := endpoints.NewManager(etcd, arguments[0])
	Check(err)
	bench.Register(arguments[1], func(_, number int) {
		addNaming(manager, arguments[0], number, given[number/keysPerLease])
	})
}

func steadyNaming(arguments []string) {
	etcd := client()
	given := leases(etcd, bench.Number(arguments[2]), usualTTL)
	manager := func(service string) endpoints.Manager {
		manager, err := endpoints.NewManager(etcd, service)
		Check(err)
		return manager
	}
	bench.Steady(arguments, func(service string, _, number int) {
		addNaming(manager(service), service, number, given[number/keysPerLease])
	}, func(service string, show func(count int)) {
		go watchNaming(manager(service), func(count int, _ string) { show(count) })
	})
}

func session(ttl int) *concurrency.Session {
	opened, err := concurrency.NewSession(client(), concurrency.WithTTL(ttl))
	Check(err)
	return opened
}

// Takes one lock repeatedly, in sessions with a client each.
func contend(arguments []string) {
	count := bench.Number(arguments[1])
	var grants atomic.Int64
	var mutexes []*concurrency.Mutex
	for range count {
		mutexes = append(mutexes, concurrency.NewMutex(session(60), arguments[0]))
	}
	bench.Go()
	begun := time.Now()
	for _, mutex := range mutexes {
		go func() {
			for {
				Check(mutex.Lock(ctx))
				grants.Add(1)
				Check(mutex.Unlock(ctx))
			}
		}()
	}
	new(bench.Shown).Answer(map[string]func(){
		// The last number is that of requests which depend on time; this library sends none.
		"count": func() { Say("count", grants.Load(), time.Since(begun).Microseconds(), 0) },
	})
}

// Takes a lock without contention that many times.
func lock(arguments []string) {
	mutex := concurrency.NewMutex(session(60), arguments[0])
	once := func() {
		Check(mutex.Lock(ctx))
		Check(mutex.Unlock(ctx))
	}
	once()
	bench.Go()
	begun := time.Now()
	for range bench.Number(arguments[1]) {
		once()
	}
	Say("locked", time.Since(begun).Microseconds())
	new(bench.Shown).Answer(nil)
}

// Campaigns; resigns at one line, and campaigns again at the next.
func campaign(arguments []string) {
	election := concurrency.NewElection(session(bench.Number(arguments[2])), arguments[0])
	for {
		bench.Go()
		Check(election.Campaign(ctx, arguments[1]))
		Say("leads")
		Line()
		Check(election.Resign(ctx))
		Say("resigned")
	}
}

// Calls through grpc-go's round robin balancer.
func call(arguments []string) {
	builder, err := resolver.NewBuilder(client())
	Check(err)
	conn, err := grpc.NewClient("etcd:///"+arguments[0], grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithResolvers(builder), grpc.WithDefaultServiceConfig(`{"loadBalancingPolicy":"round_robin"}`))
	Check(err)
	request := wrapperspb.String(strings.Repeat("x", bench.Number(arguments[2])))
	hello := func() {
		Check(conn.Invoke(ctx, "/"+Greeter+"/"+Hello, request, new(HelloReply), grpc.WaitForReady(true)))
	}
	for range warmUp {
		hello()
	}
	bench.Go()
	bench.Calls(arguments[3], arguments[4], hello)
}

func main() {
	bench.Measure(map[string]func([]string){
		"follow-raw": followRaw, "follow-naming": followNaming, "register-raw": registerRaw,
		"register-naming": registerNaming, "steady-raw": steadyRaw, "steady-naming": steadyNaming,
		"contend": contend, "lock": lock, "campaign": campaign, "call": call,
	})
}
