package holdfast

import "sync/atomic"

// A Meter counts the bytes of one running piece of work (one disk of one task). It is written by the engines and sampled by
// whoever shows progress. All methods are safe for concurrent use; the nil Meter counts nothing.
type Meter struct {
	total, done, read, sent, stored atomic.Int64
}

// A Sample is a Meter's state at one moment, in bytes.
type Sample struct {
	Total  int64 `json:"total"`  // to be processed; 0 while unknown
	Done   int64 `json:"done"`   // processed, known duplicates and holes included
	Read   int64 `json:"read"`   // read from the source
	Sent   int64 `json:"sent"`   // put on the wire
	Stored int64 `json:"stored"` // new in the pool
}

// AddTotal adds n bytes to what is to be processed.
func (m *Meter) AddTotal(n int64) {
	if m != nil {
		m.total.Add(n)
	}
}

// AddDone adds n processed bytes.
func (m *Meter) AddDone(n int64) {
	if m != nil {
		m.done.Add(n)
	}
}

// AddRead adds n bytes read from the source.
func (m *Meter) AddRead(n int64) {
	if m != nil {
		m.read.Add(n)
	}
}

// AddSent adds n bytes put on the wire.
func (m *Meter) AddSent(n int64) {
	if m != nil {
		m.sent.Add(n)
	}
}

// AddStored adds n bytes new in the pool.
func (m *Meter) AddStored(n int64) {
	if m != nil {
		m.stored.Add(n)
	}
}

// Sample returns the current counts.
func (m *Meter) Sample() Sample {
	if m == nil {
		return Sample{}
	}
	return Sample{m.total.Load(), m.done.Load(), m.read.Load(), m.sent.Load(), m.stored.Load()}
}

// Set overwrites the counts with a sample received from the other end.
func (m *Meter) Set(s Sample) {
	if m == nil {
		return
	}
	m.total.Store(s.Total)
	m.done.Store(s.Done)
	m.read.Store(s.Read)
	m.sent.Store(s.Sent)
	m.stored.Store(s.Stored)
}
