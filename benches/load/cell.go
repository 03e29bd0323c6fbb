package main

import (
	"slices"
	"syscall"
	"time"
)

const (
	closeSeconds = 2
	openMoment   = 50 * time.Millisecond // before the end, which the clients may see first
)

// cell is one measurement: so many streams through one target.
type cell struct {
	Target     string `json:"target"` // host:port
	Streams    int    `json:"streams"`
	Chunks     int    `json:"chunks"`
	IntervalUs int    `json:"interval_us"`
	Window     int    `json:"window"`
	RampMs     int    `json:"ramp_ms"`    // the time over which the streams begin
	MeasureMs  int    `json:"measure_ms"` // the measured time after it
	begin, end int64  // of the measured time
}

// result is what the clients saw; times in microseconds.
type result struct {
	TtftP50     float64 `json:"ttft_p50"`
	TtftP99     float64 `json:"ttft_p99"`
	Ttfts       int     `json:"ttfts"`
	LagP50      float64 `json:"lag_p50"`
	LagP99      float64 `json:"lag_p99"`
	Chunks      int     `json:"chunks"` // in the measured time
	AllChunks   int     `json:"all_chunks"`
	Answers     int     `json:"answers"`
	MostOpen    int64   `json:"most_open"` // streams open at the upstream just before the end of the measured time
	Errors      int     `json:"errors"`
	FirstError  string  `json:"first_error"`
	LoadShare   float64 `json:"load_share"` // of one core, for upstream and clients, in the measured time
	CloseMs     float64 `json:"close_ms"`   // from the clients' leaving until the upstream saw the last of them leave
	LeftBehind  int64   `json:"left_behind"`
	MeasuredSec float64 `json:"measured_seconds"`
}

func (c *cell) ramp() time.Duration { return time.Duration(c.RampMs) * time.Millisecond }

func (c *cell) measures(at int64) bool { return at >= c.begin && at < c.end }

func (c *cell) run(server *upstream) result {
	c.begin = now() + int64(c.ramp())
	c.end = c.begin + int64(c.MeasureMs)*int64(time.Millisecond)
	all, wait := clients(c, server)
	time.Sleep(time.Duration(c.begin - now()))
	spent, began := cpuSeconds(), now()
	time.Sleep(time.Duration(c.end-now()) - openMoment)
	open := server.open.Load()
	time.Sleep(time.Duration(c.end - now()))
	seconds := float64(now()-began) / 1e9
	share := (cpuSeconds() - spent) / seconds
	wait()
	left := now()
	for server.open.Load() > 0 && now()-left < closeSeconds*int64(time.Second) {
		time.Sleep(time.Millisecond)
	}
	found := summary(c, all)
	found.LoadShare, found.MeasuredSec, found.MostOpen = share, seconds, open
	found.CloseMs, found.LeftBehind = float64(now()-left)/1e6, server.open.Load()
	server.breakOff()
	return found
}

// summary adds up what the clients saw; a first chunk that had not come by the end counts with the time it was waited for.
func summary(c *cell, all []*client) result {
	var found result
	var firsts, lags []int64
	for _, one := range all {
		firsts, lags = append(firsts, one.firsts...), append(lags, one.lags...)
		if one.waiting > 0 && c.measures(one.waiting) {
			firsts = append(firsts, c.end-one.waiting)
		}
		found.Chunks += one.chunks
		found.AllChunks += one.allChunks
		found.Answers += one.whole
		found.Errors += len(one.errors)
		if found.FirstError == "" && len(one.errors) > 0 {
			found.FirstError = one.errors[0]
		}
	}
	found.Ttfts = len(firsts)
	found.TtftP50, found.TtftP99 = percentile(firsts, 50), percentile(firsts, 99)
	found.LagP50, found.LagP99 = percentile(lags, 50), percentile(lags, 99)
	return found
}

// percentile returns a percentile of nanoseconds in microseconds; 0 of nothing.
func percentile(values []int64, percent int) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return float64(values[(len(values)-1)*percent/100]) / 1e3
}

func cpuSeconds() float64 {
	var used syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	return float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
}
