import com.google.gson.Gson;
import com.google.protobuf.StringValue;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.ClientCalls;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;

/**
 * Calls a service 500 times a second. For each number N on the standard input, it waits until N calls have ended since
 * the former report, and prints a report.
 */
public final class Calls {
  private static final int CALLERS = 5;
  private static final int INTERVAL_NS = 10_000_000;

  /** Time by which the calls of a caller can be late, and are made up for. */
  private static final int MAX_DELAY_NS = 1_000_000_000;

  private static final int TIMEOUT_S = 5;

  private static final MethodDescriptor<StringValue, StringValue> SAY_HELLO =
      MethodDescriptor.<StringValue, StringValue>newBuilder()
          .setType(MethodDescriptor.MethodType.UNARY)
          .setFullMethodName("hello.Greeter/SayHello")
          .setRequestMarshaller(ProtoUtils.marshaller(StringValue.getDefaultInstance()))
          .setResponseMarshaller(ProtoUtils.marshaller(StringValue.getDefaultInstance()))
          .build();

  private int ended;
  private Map<String, Integer> servers;
  private List<String> failures;
  private long slowestMs;

  private Calls() {
    reset();
  }

  private void reset() {
    ended = 0;
    servers = new TreeMap<>();
    failures = new ArrayList<>();
    slowestMs = 0;
  }

  private synchronized void record(String server, String failure, long tookMs) {
    if (failure == null) {
      servers.merge(server, 1, Integer::sum);
    } else {
      failures.add(failure);
    }
    slowestMs = Math.max(slowestMs, tookMs);
    ended++;
    notifyAll();
  }

  private synchronized void print(int least) throws InterruptedException {
    while (ended < least) {
      wait();
    }
    System.out.println(
        new Gson().toJson(Map.of("servers", servers, "failures", failures, "slowest_ms", slowestMs)));
    reset();
  }

  private void callForever(Channel channel) {
    long due = System.nanoTime();
    while (true) {
      long begun = System.nanoTime();
      String server = null;
      String failure = null;
      try {
        CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(TIMEOUT_S, TimeUnit.SECONDS);
        String greeting =
            ClientCalls.blockingUnaryCall(channel, SAY_HELLO, options, StringValue.of("caller")).getValue();
        server = greeting.substring(greeting.lastIndexOf(' ') + 1);
      } catch (StatusRuntimeException error) {
        failure = error.getStatus().getCode() + ": " + error.getStatus().getDescription();
      }
      record(server, failure, (System.nanoTime() - begun) / 1_000_000);
      try {
        due = Math.max(due + INTERVAL_NS, System.nanoTime() - MAX_DELAY_NS);
        TimeUnit.NANOSECONDS.sleep(due - System.nanoTime());
      } catch (InterruptedException end) {
        return;
      }
    }
  }

  /** Runs until the end of the input. The argument is the target. */
  public static void main(String[] arguments) throws IOException, InterruptedException {
    Channel channel = Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create()).build();
    Calls calls = new Calls();
    for (int caller = 0; caller < CALLERS; caller++) {
      Thread thread = new Thread(() -> calls.callForever(channel));
      thread.setDaemon(true);
      thread.start();
    }
    BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
    for (String line = input.readLine(); line != null; line = input.readLine()) {
      calls.print(Integer.parseInt(line));
    }
    System.exit(0);
  }
}
