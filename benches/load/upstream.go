package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	streamHead = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n" +
		"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n"
	resumableHeader = "x-multimodel-resumable" // by which our router asks for markers in a stream
	stateHeader     = "x-multimodel-resume: state\r\n"
)

// script is what a request's message asks the upstream to do.
type script struct {
	Stream     int64 `json:"stream"`      // which of the clients' streams this is
	Chunks     int   `json:"chunks"`      // how many chunks the answer has
	IntervalUs int   `json:"interval_us"` // the pause after each chunk; 0: none
	Window     int   `json:"window"`      // chunks that may be written before the client has read one; 0: any number
}

// upstream is a model server that answers with chunks at the pace a request asks for.
type upstream struct {
	alias string
	open  atomic.Int64
	held  sync.Map // the connections of the open streams
	reads sync.Map // stream → chan struct{} with one entry for each chunk that may be written
}

func newUpstream(alias string) *upstream { return &upstream{alias: alias} }

func (u *upstream) accept(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go u.serve(connection)
	}
}

// serve answers one connection's requests until its other side closes it.
func (u *upstream) serve(connection net.Conn) {
	defer connection.Close()
	reader := bufio.NewReaderSize(connection, 2048)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		body, err := io.ReadAll(request.Body)
		if err != nil {
			return
		}
		if request.Method == http.MethodGet {
			err = reply(connection, u.about())
		} else {
			err = u.complete(connection, reader, body, request.Header.Get(resumableHeader) != "")
		}
		if err != nil {
			return
		}
	}
}

// about is one answer for all that routers ask of a server before they send it requests.
func (u *upstream) about() any {
	models := []any{map[string]any{"id": u.alias, "object": "model", "created": 0, "owned_by": "bench"}}
	return map[string]any{
		"object": "list", "data": models, "status": "ok", "phase": "ready", "model_path": u.alias, "model_id": u.alias,
		"model": u.alias, "canonical_id": u.alias, "boot": "1", "served_model_name": u.alias, "is_generation": true, "max_running_requests": 100000, "version": "0",
	}
}

func (u *upstream) complete(connection net.Conn, reader *bufio.Reader, body []byte, resumable bool) error {
	var wanted struct {
		Stream   bool `json:"stream"`
		Messages []struct {
			Content string `json:"content"`
		} `json:"messages"`
	}
	var told script
	if err := json.Unmarshal(body, &wanted); err != nil {
		return err
	}
	if wanted.Stream && len(wanted.Messages) > 0 && json.Unmarshal([]byte(wanted.Messages[0].Content), &told) == nil {
		return u.stream(connection, reader, told, resumable)
	}
	message := map[string]any{"role": "assistant", "content": "42"}
	choice := map[string]any{"index": 0, "message": message, "finish_reason": "stop"}
	usage := map[string]any{"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
	return reply(connection, map[string]any{
		"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": u.alias, "choices": []any{choice}, "usage": usage,
	})
}

// stream writes the chunks one by one; an error says that the other side has left.
func (u *upstream) stream(connection net.Conn, reader *bufio.Reader, told script, resumable bool) error {
	u.open.Add(1)
	u.held.Store(connection, nil)
	defer func() {
		u.held.Delete(connection)
		u.open.Add(-1)
	}()
	head := streamHead
	if resumable {
		head += stateHeader
	}
	if _, err := io.WriteString(connection, head+"\r\n"); err != nil {
		return err
	}
	event := newChunk(resumable)
	next := time.Now()
	for number := 0; number < told.Chunks; number++ {
		if told.Window > 0 && !u.mayWrite(told.Stream) {
			return awaitClose(connection, reader)
		}
		if _, err := connection.Write(event.stamp(number)); err != nil {
			return err
		}
		if told.IntervalUs > 0 {
			next = next.Add(time.Duration(told.IntervalUs) * time.Microsecond)
			if err := pauseUntil(next, connection, reader); err != nil {
				return err
			}
		}
	}
	connection.SetReadDeadline(time.Time{})
	_, err := connection.Write(lastChunk(resumable))
	return err
}

// breakOff ends the streams whose clients have left without the router having passed that on.
func (u *upstream) breakOff() {
	u.held.Range(func(connection, _ any) bool {
		connection.(net.Conn).Close()
		return true
	})
}

// expect makes a stream wait for its client; the client puts an entry into the channel for each chunk that it has read.
func (u *upstream) expect(told script) chan struct{} {
	reads := make(chan struct{}, told.Chunks+told.Window)
	for range told.Window {
		reads <- struct{}{}
	}
	u.reads.Store(told.Stream, reads)
	return reads
}

// forget ends a stream whose client has left.
func (u *upstream) forget(told script, reads chan struct{}) {
	u.reads.Delete(told.Stream)
	close(reads)
}

// mayWrite waits until the stream's client has read enough of what was written; false: the client has left.
func (u *upstream) mayWrite(stream int64) bool {
	reads, found := u.reads.Load(stream)
	if !found {
		return false
	}
	_, open := <-reads.(chan struct{})
	return open
}

// pauseUntil sleeps, and returns an error as soon as the other side closes the connection.
func pauseUntil(end time.Time, connection net.Conn, reader *bufio.Reader) error {
	connection.SetReadDeadline(end)
	_, err := reader.Peek(1)
	if waited, is := err.(net.Error); is && waited.Timeout() {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("a request came before the answer's end")
	}
	return err
}

func awaitClose(connection net.Conn, reader *bufio.Reader) error {
	if err := pauseUntil(time.Now().Add(time.Minute), connection, reader); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

func reply(connection net.Conn, document any) error {
	body, err := json.Marshal(document)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(connection,
		"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
	return err
}
