// Load is both ends of a router's benchmark: the model server behind the router and the clients before it.
//
// Both live in one process, so that one clock times a chunk's way, and so that an upstream stream can be
// told that its client has read a chunk. The process takes a model server's command line and ignores what it does not
// know; POST /run on the control port runs one measurement.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

var started = time.Now()

// now returns the nanoseconds since the process began: monotonic, so that no clock change enters a lag.
func now() int64 { return int64(time.Since(started)) }

// options returns the command line's --name=value arguments; what is not of this form is ignored.
func options(arguments []string) map[string]string {
	found := map[string]string{"host": "127.0.0.1", "port": "0", "alias": "bench", "control-port": "0"}
	for _, argument := range arguments {
		name, value, _ := strings.Cut(strings.TrimLeft(argument, "-"), "=")
		found[name] = value
	}
	return found
}

func main() {
	runtime.GOMAXPROCS(2) // of one core: reading is not put off while chunks are written
	debug.SetGCPercent(800)
	given := options(os.Args[1:])
	listener, err := net.Listen("tcp", net.JoinHostPort(given["host"], given["port"]))
	if err != nil {
		log.Fatal(err)
	}
	server := newUpstream(given["alias"])
	go server.accept(listener)
	http.HandleFunc("POST /run", func(answer http.ResponseWriter, request *http.Request) {
		var wanted cell
		if err := json.NewDecoder(request.Body).Decode(&wanted); err != nil {
			http.Error(answer, fmt.Sprintf("the cell is not readable: %v", err), http.StatusBadRequest)
			return
		}
		json.NewEncoder(answer).Encode(wanted.run(server))
	})
	log.Fatal(http.ListenAndServe(net.JoinHostPort("127.0.0.1", given["control-port"]), nil))
}
