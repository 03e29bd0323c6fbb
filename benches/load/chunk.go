package main

import (
	"bytes"
	"fmt"
	"strconv"
)

const (
	eventStart = `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"bench",` +
		`"choices":[{"index":0,"delta":{"role":"assistant","content":"`
	eventEnd   = "\"},\"finish_reason\":null}]}\n\n"
	lastEvents = `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"bench",` +
		`"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\ndata: [DONE]\n\n"
	marker       = ": resume 12345\n\n"
	lastMarker   = ": resume end\n\n"
	numberDigits = 8
	timeDigits   = 16
)

var contentMark = []byte(`"content":"`)

// chunk is an HTTP chunk that holds one SSE event; the event's text is its number and the time it was written.
type chunk struct {
	bytes  []byte
	number []byte
	time   []byte
}

// newChunk returns a chunk; one of a resumable stream names its tokens, as a model server's does.
func newChunk(resumable bool) *chunk {
	end := eventEnd
	if resumable {
		end += marker
	}
	length := len(eventStart) + numberDigits + 1 + timeDigits + len(end)
	head := fmt.Sprintf("%x\r\n%s", length, eventStart)
	blank := fmt.Sprintf("%0*d-%0*d", numberDigits, 0, timeDigits, 0)
	whole := []byte(head + blank + end + "\r\n")
	number := whole[len(head) : len(head)+numberDigits]
	return &chunk{whole, number, whole[len(head)+numberDigits+1 : len(head)+len(blank)]}
}

// stamp writes the number and the present time into the chunk and returns its bytes.
func (c *chunk) stamp(number int) []byte {
	putDigits(c.number, int64(number))
	putDigits(c.time, now())
	return c.bytes
}

func putDigits(into []byte, value int64) {
	for place := len(into) - 1; place >= 0; place-- {
		into[place] = byte('0' + value%10)
		value /= 10
	}
}

func lastChunk(resumable bool) []byte {
	events := lastEvents
	if resumable {
		events += lastMarker
	}
	return fmt.Appendf(nil, "%x\r\n%s\r\n0\r\n\r\n", len(events), events)
}

// readStamp returns the number and the time of a line's event; ok is false for a line without text.
func readStamp(line []byte) (number int, written int64, ok bool) {
	_, text, found := bytes.Cut(line, contentMark)
	if !found || len(text) < numberDigits+1+timeDigits {
		return 0, 0, false
	}
	number, err := strconv.Atoi(string(text[:numberDigits]))
	if err != nil {
		return 0, 0, false
	}
	written, err = strconv.ParseInt(string(text[numberDigits+1:numberDigits+1+timeDigits]), 10, 64)
	return number, written, err == nil
}
