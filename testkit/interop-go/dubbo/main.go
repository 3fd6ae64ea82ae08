// What dubbo-go's application-level service discovery on etcd offers: registrations, and lists of instances. The calls
// are made with grpc-go, whose protocol a server of dubbo's protocol `tri` speaks as well.
package main

import (
	"encoding/json"
	"net"
	"strconv"

	. "enlist/interop-go/common"

	dubbo "dubbo.apache.org/dubbo-go/v3/common"
	"dubbo.apache.org/dubbo-go/v3/common/constant"
	"dubbo.apache.org/dubbo-go/v3/common/extension"
	"dubbo.apache.org/dubbo-go/v3/registry"
	_ "dubbo.apache.org/dubbo-go/v3/registry/etcdv3"
	"github.com/dubbogo/gost/log/logger"
)

func open() registry.ServiceDiscovery {
	url, err := dubbo.NewURL("etcdv3://"+Endpoints()[0], dubbo.WithParamsValue(constant.RegistryKey, constant.EtcdV3Key))
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

// A gRPC server that is registered as one of dubbo-go is.
func server(arguments []string) {
	address := Serve().(*net.TCPAddr)
	tri := []registry.Endpoint{{Port: address.Port, Protocol: "tri"}}
	own := instance(arguments[0], address.IP.String(), address.Port, tri)
	own.Weight = 100
	found := open()
	Check(found.Register(own))
	Say("serves", address)
	Leave(func() { Check(found.Unregister(own)) })
}

func follow(arguments []string) {
	found := open()
	Poll(func() ([]string, bool) {
		var addresses []string
		for _, instance := range found.GetInstances(arguments[0]) {
			addresses = append(addresses, instance.GetAddress())
		}
		return addresses, true
	})
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
	Run(map[string]func([]string){"server": server, "client": follow, "write": write})
}
