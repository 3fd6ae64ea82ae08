// Measurements of kitex's `registry-etcd`: its resolver, below the cache of balancers that kitex's clients have, which
// resolves every 5 s. Its registry keeps one registration, so there is no measurement of many.
package main

import (
	"context"
	"time"

	. "enlist/interop-go/common"
	"enlist/interop-go/common/bench"

	"github.com/cloudwego/kitex/pkg/discovery"
	"github.com/cloudwego/kitex/pkg/klog"
	"github.com/cloudwego/kitex/pkg/loadbalance"
	"github.com/cloudwego/kitex/pkg/loadbalance/lbcache"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	etcd "github.com/kitex-contrib/registry-etcd"
)

// Interval at which the balancer is used. One that is not used for 15 s is removed.
const useInterval = time.Second

// A resolver that shows its results.
type shown struct {
	discovery.Resolver
	view *bench.Shown
}

func (resolver shown) Resolve(ctx context.Context, target string) (discovery.Result, error) {
	found, err := resolver.Resolver.Resolve(ctx, target)
	if err == nil {
		addresses := make([]string, 0, len(found.Instances))
		for _, instance := range found.Instances {
			addresses = append(addresses, instance.Address().String())
		}
		resolver.view.Show(len(addresses), bench.Marked(addresses))
	}
	return found, err
}

func follow(arguments []string) {
	resolver, err := etcd.NewEtcdResolver(Endpoints())
	Check(err)
	// It is connected then; a service without instances is an error.
	_, _ = resolver.Resolve(context.Background(), "connected?")
	view := bench.Follow(arguments[1])
	go func() {
		balancers := loadbalance.NewWeightedRoundRobinBalancer()
		factory := lbcache.NewBalancerFactory(shown{resolver, view}, balancers, lbcache.Options{})
		target := rpcinfo.NewEndpointInfo(arguments[0], "", nil, nil)
		balancer, err := factory.Get(context.Background(), target)
		Check(err)
		// It is kept as long as it is used.
		for range time.Tick(useInterval) {
			balancer.GetPicker()
		}
	}()
	view.Answer(nil)
}

func main() {
	klog.SetLevel(klog.LevelFatal)
	bench.Measure(map[string]func([]string){"follow": follow})
}
