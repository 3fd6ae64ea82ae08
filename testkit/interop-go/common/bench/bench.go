// Package bench has what the measured programs share. `cargo xtask bench peers` drives them (bench/src/peers): a program
// does the next thing when it reads a line, prints the outcome, and ends with its input, or after its longest life.
package bench

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	. "enlist/interop-go/common"
)

const (
	// Longest life of a program, in case nothing ends it.
	lifetime = 15 * time.Minute
	// Number of registrations under way at the same time.
	AtOnce = 256
	// Begin of the address of the instance that changes. No other one has it.
	marked = "10.255."
)

// Measure runs the function of the command line's first argument with the others.
func Measure(commands map[string]func(arguments []string)) {
	time.AfterFunc(lifetime, func() { Check(fmt.Errorf("longer than %v", lifetime)) })
	Run(commands)
}

// Go says that the program is connected, and waits for the line that begins the measurement.
func Go() {
	Say("up", processorTime())
	Line()
}

// Number reads an argument.
func Number(text string) int {
	number, err := strconv.Atoi(text)
	Check(err)
	return number
}

// Shown prints what a library shows, each time that it has changed.
type Shown struct {
	sync.Mutex
	wanted int
	before int64
	begun  time.Time
	ready  bool
	count  int
	mark   string
}

// Follow begins a view of that many instances. The library is connected, and asked for nothing else yet.
func Follow(wanted string) *Shown {
	view := &Shown{wanted: Number(wanted)}
	Go()
	view.before = settled()
	view.begun = time.Now()
	return view
}

// Show has the number of instances, and the address of the one that changes; others are of no interest.
func (view *Shown) Show(count int, address string) {
	view.Lock()
	defer view.Unlock()
	if !view.ready {
		if count < view.wanted {
			return
		}
		view.ready = true
		Say("ready", time.Since(view.begun).Microseconds())
	}
	if !strings.HasPrefix(address, marked) {
		address = "-"
	}
	if count != view.count || address != view.mark {
		view.count, view.mark = count, address
		Say("seen", count, address)
	}
}

// Answer answers requests for the use of processor and memory, and does what else a program can do.
func (view *Shown) Answer(others map[string]func()) {
	for {
		request := Line()
		if other, known := others[request]; known {
			other()
			continue
		}
		switch request {
		case "usage":
			Say("usage", processorTime())
		case "memory":
			Say("memory", settled()-view.before)
		default:
			Check(fmt.Errorf("no such request: %s", request))
		}
	}
}

// Processor time of this process, in microseconds.
func processorTime() int64 {
	var usage syscall.Rusage
	Check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return (usage.Utime.Nano() + usage.Stime.Nano()) / 1000
}

// Memory of this process without garbage, in bytes.
func settled() int64 {
	runtime.GC()
	debug.FreeOSMemory()
	return resident()
}

// Memory of this process, in bytes.
func resident() int64 {
	text, err := os.ReadFile("/proc/self/statm")
	Check(err)
	return int64(Number(strings.Fields(string(text))[1])) * int64(os.Getpagesize())
}

// Marked returns the address of the instance that changes. Libraries give lists, so it is searched for.
func Marked(addresses []string) string {
	for _, address := range addresses {
		if strings.HasPrefix(address, marked) {
			return address
		}
	}
	return ""
}

// Mark returns the address of the instance that changes in its value.
func Mark(value string) string {
	at := strings.Index(value, marked)
	if at < 0 {
		return ""
	}
	address, _, _ := strings.Cut(value[at:], `"`)
	return address
}

// Register registers that many instances with several workers, and prints the duration.
func Register(count string, register func(worker, number int)) {
	instances := Number(count)
	Go()
	begun := time.Now()
	registerAll(instances, register)
	Say("registered", time.Since(begun).Microseconds())
	new(Shown).Answer(nil)
}

func registerAll(instances int, register func(worker, number int)) {
	numbers := make(chan int)
	var workers sync.WaitGroup
	for worker := range AtOnce {
		workers.Go(func() {
			for number := range numbers {
				register(worker, number)
			}
		})
	}
	for number := range instances {
		numbers <- number
	}
	close(numbers)
	workers.Wait()
}

// Steady registers instances, as many of each service, follows all services, and prints the duration until every view
// is complete. The arguments are the prefix of the names of the services, and the numbers of services and instances.
func Steady(arguments []string, register func(service string, worker, number int),
	follow func(service string, show func(count int))) {
	services, instances := Number(arguments[1]), Number(arguments[2])
	name := func(number int) string { return fmt.Sprintf("%s-%04d", arguments[0], number%services) }
	Go()
	view := &Shown{before: resident()}
	begun := time.Now()
	registerAll(instances, func(worker, number int) { register(name(number), worker, number) })
	var incomplete sync.WaitGroup
	for number := range services {
		incomplete.Add(1)
		complete := sync.OnceFunc(incomplete.Done)
		follow(name(number), func(count int) {
			if count >= instances/services {
				complete()
			}
		})
	}
	incomplete.Wait()
	Say("ready", time.Since(begun).Microseconds())
	view.Answer(nil)
}

// Address of an instance.
func Address(number int) string {
	return fmt.Sprintf("10.%d.%d.%d:8080", number>>16&0xff, number>>8&0xff, number&0xff)
}

// Calls makes that many calls with each caller, and prints the duration, and the latencies of the median and of 99 %.
func Calls(callers, calls string, call func()) {
	each := Number(calls)
	latencies := make([][]int64, Number(callers))
	var running sync.WaitGroup
	begun := time.Now()
	for caller := range latencies {
		running.Go(func() {
			for range each {
				begun := time.Now()
				call()
				latencies[caller] = append(latencies[caller], time.Since(begun).Nanoseconds())
			}
		})
	}
	running.Wait()
	duration := time.Since(begun)
	all := slices.Concat(latencies...)
	slices.Sort(all)
	part := func(hundredths int) float64 { return float64(all[(len(all)-1)*hundredths/100]) / 1e3 }
	Say("called", duration.Microseconds(), part(50), part(99))
	new(Shown).Answer(nil)
}

// Pick picks that many times on each thread, with a picker of its own, and prints the nanoseconds that one pick takes.
func Pick(threads, picks string, picker func() func()) {
	count, often := Number(threads), Number(picks)
	var total time.Duration
	var lock sync.Mutex
	var running sync.WaitGroup
	start := make(chan struct{})
	for range count {
		running.Go(func() {
			pick := picker()
			<-start
			begun := time.Now()
			for range often {
				pick()
			}
			lock.Lock()
			defer lock.Unlock()
			total += time.Since(begun)
		})
	}
	close(start)
	running.Wait()
	Say("picked", float64(total.Nanoseconds())/float64(count)/float64(often))
}
