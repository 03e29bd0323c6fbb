package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	readBytes   = 4096
	dialSeconds = 10
	endMargin   = 10 * time.Millisecond  // what the end of the cell breaks off is no error
	retryPause  = 100 * time.Millisecond // a router that refuses at once shall not be asked in a tight loop
)

var streamNumber atomic.Int64

// client holds one stream after another open, on one connection, until its cell ends.
type client struct {
	cell       *cell
	upstream   *upstream
	connection net.Conn
	reader     *bufio.Reader
	waiting    int64 // when the request was sent whose first chunk has not come; 0: none
	firsts     []int64
	lags       []int64
	chunks     int // in the measured time
	allChunks  int
	whole      int // answers read to their end
	errors     []string
}

// run begins after a delay, so that the cell's streams are at different places of their answers.
func (c *client) run(delay time.Duration) {
	defer c.close()
	for time.Sleep(delay); now() < c.cell.end; {
		err := c.stream()
		if err != nil && now() < c.cell.end {
			c.waiting = 0
			c.errors = append(c.errors, err.Error())
			c.close()
			time.Sleep(retryPause)
		}
	}
}

func (c *client) close() {
	if c.connection != nil {
		c.connection.Close()
		c.connection = nil
	}
}

// stream sends one request and reads its answer to the end.
func (c *client) stream() error {
	if c.connection == nil {
		connection, err := net.DialTimeout("tcp", c.cell.Target, dialSeconds*time.Second)
		if err != nil {
			return err
		}
		connection.SetDeadline(time.Now().Add(time.Duration(c.cell.end-now()) + endMargin))
		c.connection, c.reader = connection, bufio.NewReaderSize(connection, readBytes)
	}
	told := script{streamNumber.Add(1), c.cell.Chunks, c.cell.IntervalUs, c.cell.Window}
	var reads chan struct{}
	if told.Window > 0 {
		reads = c.upstream.expect(told)
		defer c.upstream.forget(told, reads)
	}
	c.waiting = now()
	if _, err := c.connection.Write(c.request(told)); err != nil {
		return err
	}
	answer, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(answer.Body, 300))
		return fmt.Errorf("status %d: %s", answer.StatusCode, body)
	}
	if err := c.read(answer.Body, reads); err != nil {
		return err
	}
	c.whole++
	if answer.Close {
		c.close()
	}
	return nil
}

func (c *client) request(told script) []byte {
	content, _ := json.Marshal(told)
	text, _ := json.Marshal(string(content))
	body := fmt.Sprintf(`{"model":"bench","stream":true,"max_tokens":%d,"messages":[{"role":"user","content":%s}]}`,
		told.Chunks, text)
	return fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nhost: %s\r\nauthorization: Bearer none\r\n"+
		"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s", c.cell.Target, len(body), body)
}

// read takes an answer's events; every chunk must come, once and in order, and the end must be announced.
func (c *client) read(body io.Reader, reads chan<- struct{}) error {
	buffer := make([]byte, readBytes)
	held, expected, done := 0, 0, false
	for {
		count, err := body.Read(buffer[held:])
		at := now()
		rest := buffer[:held+count]
		for {
			line, after, complete := bytes.Cut(rest, []byte("\n"))
			if !complete {
				break
			}
			rest = after
			if number, written, ok := readStamp(line); ok {
				if number != expected {
					return fmt.Errorf("chunk %d came, %d was expected", number, expected)
				}
				expected++
				c.took(at, written)
				if reads != nil {
					reads <- struct{}{}
				}
			} else if bytes.HasPrefix(line, []byte("data: [DONE]")) {
				done = true
			}
		}
		held = copy(buffer, rest)
		if held == len(buffer) {
			return errors.New("a line is longer than the buffer")
		}
		if err == io.EOF && done && expected == c.cell.Chunks {
			return nil
		}
		if err == io.EOF {
			return fmt.Errorf("the answer ended after %d of %d chunks: %.100s", expected, c.cell.Chunks, buffer[:held])
		}
		if err != nil {
			return fmt.Errorf("after %d of %d chunks: %w", expected, c.cell.Chunks, err)
		}
	}
}

// took notes a chunk that was read at one time and written at another.
func (c *client) took(at, written int64) {
	c.allChunks++
	if c.waiting > 0 {
		if c.cell.measures(c.waiting) {
			c.firsts = append(c.firsts, at-c.waiting)
		}
		c.waiting = 0
	}
	if c.cell.measures(at) {
		c.chunks++
		c.lags = append(c.lags, at-written)
	}
}

// clients starts a cell's clients, and returns them with the way to wait for their end.
func clients(c *cell, server *upstream) (all []*client, wait func()) {
	var running sync.WaitGroup
	random := rand.New(rand.NewPCG(1, 2))
	for number := range c.Streams {
		one := &client{cell: c, upstream: server}
		all = append(all, one)
		place := (float64(number) + random.Float64()) / float64(c.Streams) // of the streams' ticks no two shall coincide
		running.Add(1)
		go func() {
			defer running.Done()
			one.run(time.Duration(place * float64(c.ramp())))
		}()
	}
	return all, running.Wait
}
