// A server of dubbo-go with its application-level registry on etcd, and its lists of instances. The instances in them
// are called with grpc-go, because a consumer of dubbo asks them for dubbo's metadata before its first call.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	. "enlist/interop-go/common"

	"dubbo.apache.org/dubbo-go/v3"
	"dubbo.apache.org/dubbo-go/v3/client"
	_ "dubbo.apache.org/dubbo-go/v3/cluster/cluster/failover"
	_ "dubbo.apache.org/dubbo-go/v3/cluster/loadbalance/random"
	"dubbo.apache.org/dubbo-go/v3/common"
	"dubbo.apache.org/dubbo-go/v3/common/constant"
	"dubbo.apache.org/dubbo-go/v3/common/extension"
	_ "dubbo.apache.org/dubbo-go/v3/filter/accesslog"
	_ "dubbo.apache.org/dubbo-go/v3/filter/echo"
	_ "dubbo.apache.org/dubbo-go/v3/filter/exec_limit"
	_ "dubbo.apache.org/dubbo-go/v3/filter/generic"
	_ "dubbo.apache.org/dubbo-go/v3/filter/graceful_shutdown"
	_ "dubbo.apache.org/dubbo-go/v3/filter/token"
	_ "dubbo.apache.org/dubbo-go/v3/filter/tps"
	_ "dubbo.apache.org/dubbo-go/v3/metadata/mapping/metadata"
	_ "dubbo.apache.org/dubbo-go/v3/metadata/report/etcd"
	"dubbo.apache.org/dubbo-go/v3/protocol"
	_ "dubbo.apache.org/dubbo-go/v3/protocol/triple"
	health "dubbo.apache.org/dubbo-go/v3/protocol/triple/health/triple_health"
	_ "dubbo.apache.org/dubbo-go/v3/proxy/proxy_factory"
	"dubbo.apache.org/dubbo-go/v3/registry"
	_ "dubbo.apache.org/dubbo-go/v3/registry/directory"
	_ "dubbo.apache.org/dubbo-go/v3/registry/etcdv3"
	_ "dubbo.apache.org/dubbo-go/v3/registry/protocol"
	_ "dubbo.apache.org/dubbo-go/v3/registry/servicediscovery"
	"github.com/dubbogo/gost/log/logger"
)

const (
	// Pause between two looks for the own registration.
	pause = 100 * time.Millisecond
	// Deadline of a call.
	deadline = 10 * time.Second
)

func open() registry.ServiceDiscovery {
	url, err := common.NewURL("etcdv3://"+Endpoints()[0], common.WithParamsValue(constant.RegistryKey, constant.EtcdV3Key))
	Check(err)
	found, err := extension.GetServiceDiscovery(url)
	Check(err)
	return found
}

// As a server of dubbo-go registers itself.
func instance(service, host string, port int, endpoints []registry.Endpoint) *registry.DefaultServiceInstance {
	own := &registry.DefaultServiceInstance{
		ID: host + ":" + strconv.Itoa(port), ServiceName: service, Host: host, Port: port,
		Enable: true, Healthy: true, Metadata: map[string]string{},
	}
	if len(endpoints) > 0 {
		text, err := json.Marshal(endpoints)
		Check(err)
		own.Metadata[constant.ServiceInstanceEndpoints] = string(text)
	}
	return own
}

// Healthy answers health checks. dubbo exports the methods of exported types only.
type Healthy struct{}

func (Healthy) Check(context.Context, *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
}

func (Healthy) Watch(context.Context, *health.HealthCheckRequest, health.Health_WatchServer) error {
	return errors.New("there is nothing to watch")
}

// A server of dubbo with the protocol tri, which is registered at application level.
func serve(arguments []string) {
	address, err := net.ResolveTCPAddr("tcp", FreeAddress())
	Check(err)
	instance, err := dubbo.NewInstance(
		dubbo.WithName(arguments[0]),
		dubbo.WithMetadataServiceProtocol("tri"),
		dubbo.WithRegistry(registry.WithEtcdV3(), registry.WithAddress(Endpoints()[0]), registry.WithRegisterService()),
		dubbo.WithProtocol(protocol.WithTriple(), protocol.WithIp(address.IP.String()), protocol.WithPort(address.Port)),
	)
	Check(err)
	serving, err := instance.NewServer()
	Check(err)
	Check(health.RegisterHealthHandler(serving, Healthy{}))
	go func() { Check(serving.Serve()) }()
	found := open()
	for !slices.ContainsFunc(found.GetInstances(arguments[0]), func(one registry.ServiceInstance) bool {
		return one.GetAddress() == address.String()
	}) {
		time.Sleep(pause)
	}
	Say("serves", address)
	// As a server of dubbo does it when it is terminated, before it lets the running calls end.
	Leave(func() { extension.GetProtocol(constant.RegistryProtocol).Destroy() })
}

// An instance that is updated with another weight and other metadata at a line.
func changing(arguments []string) {
	address := Serve().(*net.TCPAddr)
	own := instance(arguments[0], address.IP.String(), address.Port,
		[]registry.Endpoint{{Port: address.Port, Protocol: "tri"}})
	opened := open()
	Check(opened.Register(own))
	Say("serves", address)
	Line()
	own.Weight, own.Metadata["team"] = 3, "green"
	Check(opened.Update(own))
	Say("serves", address)
	Line()
}

// An instance as text: the address, the weight, and an entry of its metadata.
func text(instance registry.ServiceInstance) string {
	return fmt.Sprintf("%s,weight=%d,team=%s", instance.GetAddress(), instance.GetWeight(), instance.GetMetadata()["team"])
}

func follow(arguments []string) {
	found := open()
	Poll(func() ([]string, bool) {
		var addresses []string
		for _, instance := range found.GetInstances(arguments[0]) {
			addresses = append(addresses, text(instance))
		}
		return addresses, true
	})
}

// A consumer of dubbo, which makes a call after each line. It finds the application of its interface, and the methods of
// the instances, in the metadata report.
func call([]string) {
	instance, err := dubbo.NewInstance(
		dubbo.WithName("caller"),
		dubbo.WithRegistry(registry.WithEtcdV3(), registry.WithAddress(Endpoints()[0]), registry.WithRegisterService()),
	)
	Check(err)
	caller, err := instance.NewClient(client.WithClientProtocolTriple())
	Check(err)
	service, err := health.NewHealth(caller)
	Check(err)
	for {
		Line()
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		answer, err := service.Check(ctx, &health.HealthCheckRequest{})
		cancel()
		if err != nil {
			Say("refused", err)
		} else {
			Say("answered", answer.Status)
		}
	}
}

// Registers an instance as it is given, for a comparison of the bytes.
func write(arguments []string) {
	given := Instance(arguments[0])
	var endpoints []registry.Endpoint
	for _, endpoint := range given.Endpoints {
		if endpoint.Protocol != "" {
			endpoints = append(endpoints, registry.Endpoint{Port: endpoint.Port, Protocol: endpoint.Protocol})
		}
	}
	own := instance(given.Service, given.Endpoints[0].Host, given.Endpoints[0].Port, endpoints)
	if given.Weight != nil {
		own.Weight = int64(*given.Weight)
	}
	for name, text := range given.Metadata {
		own.Metadata[name] = text
	}
	Check(open().Register(own))
	Say("wrote")
	ReadToEnd()
}

func main() {
	logger.SetLoggerLevel("error")
	Run(map[string]func([]string){
		"server": serve, "changing": changing, "client": follow, "call": call, "write": write,
	})
}
