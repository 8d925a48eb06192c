import java.net.URI;
import java.net.http.HttpRequest;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.text.NumberFormat;
import java.time.ZoneId;
import java.time.ZonedDateTime;
import java.time.format.DateTimeFormatter;
import java.util.Comparator;
import java.util.HexFormat;
import java.util.Locale;
import java.util.Scanner;
import java.util.concurrent.CompletableFuture;
import java.util.logging.Level;
import java.util.logging.Logger;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import javax.xml.parsers.DocumentBuilderFactory;

/** What a small service loads before it answers: streams, time, XML, a digest, HTTP, logging. */
public class Service {
    record Item(int number, String name, ZonedDateTime when) {}

    public static void main(String[] words) throws Exception {
        String event = new Scanner(System.in, StandardCharsets.UTF_8).useDelimiter("\\A").next();
        Logger.getLogger("service").log(Level.FINE, "called with {0}", event);
        var zone = ZonedDateTime.of(2026, 1, 2, 3, 4, 5, 0, ZoneId.of("Europe/Berlin"));
        var items = IntStream.range(0, 100)
            .mapToObj(n -> new Item(n, "item " + n, zone.plusDays(n)))
            .sorted(Comparator.comparing(Item::when).reversed())
            .collect(Collectors.groupingBy(i -> i.number() % 7, Collectors.counting()));
        var builder = DocumentBuilderFactory.newInstance().newDocumentBuilder();
        var document = builder.newDocument();
        document.appendChild(document.createElement("answer"));
        var digest = MessageDigest.getInstance("SHA-256").digest(event.getBytes());
        var request = HttpRequest.newBuilder(URI.create("http://localhost/" + items.size())).build();
        var later = CompletableFuture.supplyAsync(() -> Pattern.compile("(\\d+)").matcher(event));
        String number = NumberFormat.getInstance(Locale.GERMANY).format(1234567.89);
        System.out.printf("{\"found\": %b, \"digest\": \"%s\", \"when\": \"%s\", \"to\": \"%s %s\"}%n",
            later.get().find(), HexFormat.of().formatHex(digest),
            DateTimeFormatter.ISO_DATE.format(zone), request.uri(), number);
    }
}
