package common

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/apipb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The messages of the examples' service (examples/proto/greeter.proto). An encoding has the numbers of fields and not
// their names, and these known types have the same ones: a text, and two texts. So no code is generated.
type (
	HelloRequest = wrapperspb.StringValue
	HelloReply   = apipb.Mixin
)

// Parts of the method's name.
const (
	Greeter = "greeter.Greeter"
	Hello   = "Hello"
)

const (
	// Callers of a program, and the pause of each between two calls.
	callers = 2
	pause   = 10 * time.Millisecond
	// Deadline of a call.
	deadline = 5 * time.Second
)

// Greet adds the service to a server, which answers with its address.
func Greet(server grpc.ServiceRegistrar, address string) {
	answer := func(_ context.Context, request any) (any, error) {
		return &HelloReply{Name: "hello, " + request.(*HelloRequest).Value, Root: address}, nil
	}
	handle := func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		request := new(HelloRequest)
		if err := decode(request); err != nil {
			return nil, err
		}
		if intercept == nil {
			return answer(ctx, request)
		}
		return intercept(ctx, request, &grpc.UnaryServerInfo{FullMethod: "/" + Greeter + "/" + Hello}, answer)
	}
	hello := grpc.MethodDesc{MethodName: Hello, Handler: handle}
	server.RegisterService(&grpc.ServiceDesc{ServiceName: Greeter, Methods: []grpc.MethodDesc{hello}}, nil)
}

// HelloOver makes calls over a connection.
func HelloOver(conn grpc.ClientConnInterface) func(context.Context) (*HelloReply, error) {
	return func(ctx context.Context) (*HelloReply, error) {
		reply := new(HelloReply)
		return reply, conn.Invoke(ctx, "/"+Greeter+"/"+Hello, wrapperspb.String("world"), reply)
	}
}

// KeepCalling makes calls until the input ends, and prints the server or the failure of each.
func KeepCalling(call func(context.Context) (*HelloReply, error)) {
	for i := 0; i < callers; i++ {
		go func() {
			for {
				ctx, cancel := context.WithTimeout(context.Background(), deadline)
				reply, err := call(ctx)
				cancel()
				if err == nil {
					Say("from", reply.Root)
				} else {
					Say("failed", fmt.Sprintf("%q", err.Error()))
				}
				time.Sleep(pause)
			}
		}()
	}
	ReadToEnd()
}

// ReadToEnd reads the input; the program ends with it.
func ReadToEnd() {
	for {
		Line()
	}
}

// Terminated waits for the signal of a service manager, and ends the program with its input.
func Terminated() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go ReadToEnd()
	<-signals
}
