// Package common has what the programs beside it share: lines in both directions, a gRPC server, a call.
//
// A program prints a line for everything that happens, and does the next thing when it reads one. It ends with its
// input.
package common

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

var (
	input  = bufio.NewReader(os.Stdin)
	output = os.Stdout
)

// Libraries that log do so on the standard output.
func init() { os.Stdout = os.Stderr }

// Say prints a line.
func Say(words ...any) { fmt.Fprintln(output, words...) }

// Check ends the program if there is an error.
func Check(err error) {
	if err != nil {
		Say("failed:", err)
		os.Exit(1)
	}
}

// Line waits for a line; the end of the input ends the program.
func Line() string {
	text, err := input.ReadString('\n')
	if err != nil {
		os.Exit(0)
	}
	return strings.TrimSpace(text)
}

// Endpoints of the etcd.
func Endpoints() []string { return []string{os.Getenv("ENLIST_ENDPOINTS")} }

// FreeAddress returns an address of this machine at which nobody listens.
func FreeAddress() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Check(err)
	defer listener.Close()
	return listener.Addr().String()
}

// Serve answers gRPC health checks at a free port.
func Serve() net.Addr {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Check(err)
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { Check(server.Serve(listener)) }()
	return listener.Addr()
}

// Call makes a health check through a connection, and prints its answer.
func Call(conn grpc.ClientConnInterface) {
	CallBy(func(ctx context.Context) (*healthpb.HealthCheckResponse, error) {
		return healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	})
}

// CallBy makes a health check, and prints its answer.
func CallBy(check func(context.Context) (*healthpb.HealthCheckResponse, error)) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	answer, err := check(ctx)
	if err != nil {
		Say("refused", err)
		return
	}
	Say("answered", answer.Status)
}

// CallAt makes a health check at an address, for libraries that do not speak gRPC themselves.
func CallAt(address string) {
	conn, err := grpc.Dial(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	Check(err)
	defer conn.Close()
	Call(conn)
}

// Interval of Poll. The libraries' own ones are longer.
const pollInterval = 100 * time.Millisecond

// Poll prints what a library without gRPC finds, each time that it has changed, and makes a health check at the first
// address after each line. An address ends at a comma. The last ones stay if nothing could be found out.
func Poll(find func() (addresses []string, known bool)) {
	var lock sync.Mutex
	var last []string
	go show(func() ([]string, bool) {
		addresses, known := find()
		if known {
			lock.Lock()
			last = append([]string(nil), addresses...)
			lock.Unlock()
		}
		return addresses, known
	})
	for {
		Line()
		lock.Lock()
		addresses := last
		lock.Unlock()
		if len(addresses) > 0 {
			address, _, _ := strings.Cut(addresses[0], ",")
			CallAt(address)
		} else {
			Say("refused", "no instance")
		}
	}
}

// PollAndCall prints what a library finds, as Poll does, and makes a health check with the library's own client after
// each line.
func PollAndCall(
	find func() (addresses []string, known bool),
	check func(context.Context) (*healthpb.HealthCheckResponse, error),
) {
	go show(find)
	for {
		Line()
		CallBy(check)
	}
}

func show(find func() (addresses []string, known bool)) {
	var view View
	for {
		if addresses, known := find(); known {
			view.Show(addresses)
		}
		time.Sleep(pollInterval)
	}
}

// Leave waits for the line after which a server leaves, and for the one after that.
func Leave(leave func()) {
	Line()
	leave()
	Say("left")
	Line()
}

// View prints a view each time that it has changed.
type View struct {
	sync.Mutex
	last *string
}

// Show prints the instances, in the order of their texts, unless they are those that were shown last.
func (view *View) Show(instances []string) {
	view.Lock()
	defer view.Unlock()
	sort.Strings(instances)
	now := strings.Join(instances, " ")
	if view.last == nil || *view.last != now {
		view.last = &now
		Say("sees", now)
	}
}

// Run runs the function of the command line's first argument with the others.
func Run(commands map[string]func(arguments []string)) {
	run, known := commands[os.Args[1]]
	if !known {
		Say("failed: no such command:", os.Args[1])
		os.Exit(2)
	}
	run(os.Args[2:])
}
