// What kratos offers: an app with its gRPC server and a registrar, discovery, and a client on it.
//
// The module proxy does not serve its `contrib/registry/etcd`. The registry below is ours: it stores kratos' own
// encoding of an instance under the keys that `docs/wire-formats.md` describes.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	. "enlist/interop-go/common"

	"github.com/go-kratos/kratos/v2"
	"github.com/go-kratos/kratos/v2/log"
	"github.com/go-kratos/kratos/v2/registry"
	"github.com/go-kratos/kratos/v2/transport/grpc"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// Seconds that an instance outlives its program.
const ttl = 5

type store struct{ etcd *clientv3.Client }

func open() store {
	etcd, err := clientv3.New(clientv3.Config{Endpoints: Endpoints(), DialTimeout: 5 * time.Second})
	Check(err)
	return store{etcd}
}

func prefix(service string) string { return "/microservices/" + service + "/" }

// Register stores the instance, and does so again under another lease whenever its lease has ended.
func (s store) Register(ctx context.Context, instance *registry.ServiceInstance) error {
	value, err := json.Marshal(instance)
	if err != nil {
		return err
	}
	put := func() (*concurrency.Session, error) {
		session, err := concurrency.NewSession(s.etcd, concurrency.WithTTL(ttl))
		if err != nil {
			return nil, err
		}
		_, err = s.etcd.Put(ctx, prefix(instance.Name)+instance.ID, string(value), clientv3.WithLease(session.Lease()))
		return session, err
	}
	session, err := put()
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	go func() {
		for {
			<-session.Done()
			for session, err = put(); err != nil; session, err = put() {
				time.Sleep(time.Second)
			}
		}
	}()
	return nil
}

func (s store) Deregister(ctx context.Context, instance *registry.ServiceInstance) error {
	_, err := s.etcd.Delete(ctx, prefix(instance.Name)+instance.ID)
	return err
}

func (s store) GetService(ctx context.Context, name string) ([]*registry.ServiceInstance, error) {
	answer, err := s.etcd.Get(ctx, prefix(name), clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	var instances []*registry.ServiceInstance
	for _, pair := range answer.Kvs {
		instance := new(registry.ServiceInstance)
		if err := json.Unmarshal(pair.Value, instance); err != nil {
			return nil, err
		}
		instances = append(instances, instance)
	}
	return instances, nil
}

// Watch reads the whole service at each sign of a change.
func (s store) Watch(ctx context.Context, name string) (registry.Watcher, error) {
	ctx, stop := context.WithCancel(ctx)
	signs := make(chan struct{}, 1)
	signs <- struct{}{}
	go func() {
		for range s.etcd.Watch(clientv3.WithRequireLeader(ctx), prefix(name), clientv3.WithPrefix()) {
			select {
			case signs <- struct{}{}:
			default:
			}
		}
	}()
	return &watch{s, ctx, stop, name, signs}, nil
}

type watch struct {
	store
	ctx   context.Context
	stop  context.CancelFunc
	name  string
	signs chan struct{}
}

func (w *watch) Next() ([]*registry.ServiceInstance, error) {
	select {
	case <-w.ctx.Done():
		return nil, errors.New("stopped")
	case <-w.signs:
		return w.GetService(w.ctx, w.name)
	}
}

func (w *watch) Stop() error {
	w.stop()
	return nil
}

// The server has a health service of its own.
func server(arguments []string) {
	var app *kratos.App
	started := func(context.Context) error {
		Say("serves", strings.TrimPrefix(app.Endpoint()[0], "grpc://"))
		return nil
	}
	app = kratos.New(
		kratos.Name(arguments[0]),
		kratos.Version("v1.0.0"),
		kratos.Metadata(map[string]string{"weight": "7"}),
		kratos.Server(grpc.NewServer(grpc.Address("127.0.0.1:0"))),
		kratos.Registrar(open()),
		kratos.AfterStart(started),
	)
	go func() { Check(app.Run()) }()
	Leave(func() { Check(app.Stop()) })
}

// An instance as text: endpoints, version and metadata.
func text(instance *registry.ServiceInstance) string {
	var metadata []string
	for key, value := range instance.Metadata {
		metadata = append(metadata, key+"="+value)
	}
	sort.Strings(metadata)
	return fmt.Sprintf("%s,%s,%s", strings.Join(instance.Endpoints, "+"), instance.Version, strings.Join(metadata, "+"))
}

func follow(arguments []string) {
	found := open()
	watcher, err := found.Watch(context.Background(), arguments[0])
	Check(err)
	go func() {
		var view View
		for {
			instances, err := watcher.Next()
			if err != nil {
				continue
			}
			var texts []string
			for _, instance := range instances {
				texts = append(texts, text(instance))
			}
			view.Show(texts)
		}
	}()
	conn, err := grpc.DialInsecure(context.Background(), grpc.WithEndpoint("discovery:///"+arguments[0]),
		grpc.WithDiscovery(found), grpc.WithTimeout(10*time.Second))
	Check(err)
	for {
		Line()
		Call(conn)
	}
}

func main() {
	log.SetLogger(log.NewFilter(log.DefaultLogger, log.FilterLevel(log.LevelError)))
	Run(map[string]func([]string){"server": server, "client": follow})
}
