// A control plane for xDS on go-control-plane, over the keys of `enlist` in etcd: what the agent does, for measurements.
// It does the next thing when it reads a line, prints the outcome, and ends with its input, or after its longest life.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	. "enlist/interop-go/common"
	"enlist/interop-go/common/bench"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// Keys of a page.
	page = 1000
	// Weight of an instance whose value has none.
	weight = 100
)

var ctx = context.Background()

// An instance, as far as xDS shows it.
type instance struct {
	Endpoints []string `json:"endpoints"`
	Weight    *uint32  `json:"weight"`
	Zone      string   `json:"zone"`
}

// Instances by service and id.
type registry struct {
	prefix   string
	services map[string]map[string]instance
}

// Takes a key over, or removes it. Returns its service.
func (registry *registry) apply(key string, value []byte) string {
	service, id, _ := strings.Cut(strings.TrimPrefix(key, registry.prefix), "/")
	if registry.services[service] == nil {
		registry.services[service] = map[string]instance{}
	}
	if value == nil {
		delete(registry.services[service], id)
		return service
	}
	var read instance
	Check(json.Unmarshal(value, &read))
	registry.services[service][id] = read
	return service
}

// Place of instances: those of a place are one locality of the assignment.
type place struct {
	zone   string
	weight uint32
}

// The assignment of a service.
func (registry *registry) assignment(service string) *endpoint.ClusterLoadAssignment {
	instances, localities := registry.services[service], map[place]*endpoint.LocalityLbEndpoints{}
	assignment := &endpoint.ClusterLoadAssignment{ClusterName: service}
	for _, id := range slices.Sorted(maps.Keys(instances)) {
		one := instances[id]
		at := place{one.Zone, weight}
		if one.Weight != nil {
			at.weight = *one.Weight
		}
		locality := localities[at]
		if locality == nil {
			locality = &endpoint.LocalityLbEndpoints{
				Locality:            &core.Locality{Zone: at.zone, SubZone: fmt.Sprint(at.weight)},
				LoadBalancingWeight: wrapperspb.UInt32(0),
			}
			localities[at] = locality
			assignment.Endpoints = append(assignment.Endpoints, locality)
		}
		locality.LoadBalancingWeight.Value += at.weight
		locality.LbEndpoints = append(locality.LbEndpoints, serving(one.Endpoints[0]))
	}
	return assignment
}

// The endpoint of an instance.
func serving(text string) *endpoint.LbEndpoint {
	_, authority, _ := strings.Cut(text, "://")
	host, port, err := net.SplitHostPort(authority)
	Check(err)
	socket := &core.SocketAddress{
		Address:       host,
		PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(bench.Number(port))},
	}
	address := &core.Address{Address: &core.Address_SocketAddress{SocketAddress: socket}}
	return &endpoint.LbEndpoint{
		HealthStatus:   core.HealthStatus_HEALTHY,
		HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: address}},
	}
}

// The caches of a server, each for one type.
type caches struct{ listeners, routes, clusters, assignments *cache.LinearCache }

func newCaches() caches {
	of := func(url resource.Type) *cache.LinearCache { return cache.NewLinearCache(url) }
	return caches{of(resource.ListenerType), of(resource.RouteType), of(resource.ClusterType), of(resource.EndpointType)}
}

// All caches as one.
func (caches caches) all() cache.Cache {
	return &cache.MuxCache{
		Classify:      func(request *cache.Request) string { return request.GetTypeUrl() },
		ClassifyDelta: func(request *cache.DeltaRequest) string { return request.GetTypeUrl() },
		Caches: map[string]cache.Cache{
			resource.ListenerType: caches.listeners, resource.RouteType: caches.routes,
			resource.ClusterType: caches.clusters, resource.EndpointType: caches.assignments,
		},
	}
}

// Adds what depends on the name of a service only.
func (caches caches) add(service string) {
	ads := &core.ConfigSource{
		ResourceApiVersion:    core.ApiVersion_V3,
		ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
	}
	connections := &hcm.HttpConnectionManager{
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads, RouteConfigName: service}},
		HttpFilters: []*hcm.HttpFilter{{
			Name: "router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: packed(&router.Router{})},
		}},
	}
	api := &listener.ApiListener{ApiListener: packed(connections)}
	Check(caches.listeners.UpdateResource(service, &listener.Listener{Name: service, ApiListener: api}))
	action := &route.RouteAction{ClusterSpecifier: &route.RouteAction_Cluster{Cluster: service}}
	hosts := []*route.VirtualHost{{
		Name: service, Domains: []string{"*"},
		Routes: []*route.Route{{
			Match:  &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{}},
			Action: &route.Route_Route{Route: action},
		}},
	}}
	Check(caches.routes.UpdateResource(service, &route.RouteConfiguration{Name: service, VirtualHosts: hosts}))
	Check(caches.clusters.UpdateResource(service, &cluster.Cluster{
		Name:                 service,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: ads},
	}))
}

func packed(message proto.Message) *anypb.Any {
	packed, err := anypb.New(message)
	Check(err)
	return packed
}

// Reads all services into the caches. Returns the revision.
func (registry *registry) load(etcd *clientv3.Client, caches caches) int64 {
	var revision int64
	end := clientv3.GetPrefixRangeEnd(registry.prefix)
	for from, more := registry.prefix, true; more; {
		answer, err := etcd.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(revision))
		Check(err)
		for _, pair := range answer.Kvs {
			registry.apply(string(pair.Key), pair.Value)
			from = string(pair.Key) + "\x00"
		}
		revision, more = answer.Header.Revision, answer.More
	}
	assignments := map[string]types.Resource{}
	for service := range registry.services {
		caches.add(service)
		assignments[service] = registry.assignment(service)
	}
	caches.assignments.SetResources(assignments)
	return revision
}

// Takes changes after a revision over.
func (registry *registry) follow(etcd *clientv3.Client, caches caches, revision int64) {
	for answer := range etcd.Watch(ctx, registry.prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1)) {
		Check(answer.Err())
		changed := map[string]types.Resource{}
		for _, event := range answer.Events {
			changed[registry.apply(string(event.Kv.Key), event.Kv.Value)] = nil
		}
		for service := range changed {
			changed[service] = registry.assignment(service)
		}
		Check(caches.assignments.UpdateResources(changed, nil))
	}
}

// Serves the services below a prefix of keys.
func serve(arguments []string) {
	etcd, err := clientv3.New(clientv3.Config{Endpoints: Endpoints(), DialTimeout: 5 * time.Second})
	Check(err)
	_, err = etcd.Get(ctx, "connected?")
	Check(err)
	bench.Go()
	registry, caches := &registry{arguments[0], map[string]map[string]instance{}}, newCaches()
	revision := registry.load(etcd, caches)
	go registry.follow(etcd, caches, revision)
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	Check(err)
	plane := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(plane, server.NewServer(ctx, caches.all(), nil))
	go func() { Check(plane.Serve(socket)) }()
	Say("serves", socket.Addr().(*net.TCPAddr).Port)
	new(bench.Shown).Answer(nil)
}

func main() { bench.Measure(map[string]func([]string){"xds": serve}) }
