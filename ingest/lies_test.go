package ingest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// Goal: an agent that lies about counts, sizes, compression, order or time is refused before anything of it is stored, and what it says of time is not
// believed. Method: one lie each, against a real server; a lie that the agent's own half of the protocol refuses to send counts as refused.
func TestLiesAboutCountsOrderAndTimeAreRefused(t *testing.T) {
	big := bytes.Repeat([]byte{1}, block)
	for name, lie := range map[string]func(a *agent){
		"a group that says it has more than it may": func(a *agent) {
			a.try(wire.TypePut, 0, &holdfast.Group{Chunks: []holdfast.Piece{{Digest: a.hash.Sum(big), Len: holdfast.MaxGroupPlain + 1}}, Payload: big})
		},
		"a group of nothing": func(a *agent) { a.try(wire.TypePut, 0, &holdfast.Group{}) },
		"a chunk of no bytes": func(a *agent) {
			a.try(wire.TypePut, 0, &holdfast.Group{Chunks: []holdfast.Piece{{Digest: a.hash.Sum(nil)}}, Payload: []byte{}})
		},
		"a payload longer than its plaintext": func(a *agent) {
			a.try(wire.TypePut, 0, &holdfast.Group{Chunks: []holdfast.Piece{{Digest: a.hash.Sum(big), Len: block}}, Payload: append(bytes.Clone(big), 1)})
		},
		"a zstd frame that says it is a GiB": func(a *agent) {
			frame := binary.LittleEndian.AppendUint32(nil, 0xFD2FB528)
			frame = append(frame, 0xa0)                              // single segment, content size of 4 bytes
			frame = binary.LittleEndian.AppendUint32(frame, 1<<30)   // the lie
			frame = append(frame, 0x03|0xf8, 0xff, 0x1f, 0, 0, 0, 0) // an RLE block, the last
			a.try(wire.TypePut, 0, &holdfast.Group{Codec: holdfast.Zstd, Chunks: []holdfast.Piece{{Digest: a.hash.Sum(big), Len: block}}, Payload: frame})
		},
		"an s2 block of a ratio of a thousand": func(a *agent) {
			codec, payload := chunk.NewEncoder(chunk.LevelFast).Encode(make([]byte, 0, chunk.MaxEncoded), make([]byte, 1<<20))
			a.try(wire.TypePut, 0, &holdfast.Group{Codec: codec, Chunks: []holdfast.Piece{{Digest: a.hash.Sum(big), Len: block}}, Payload: payload})
		},
		"a codec that is none": func(a *agent) {
			a.try(wire.TypePut, 0, &holdfast.Group{Codec: 77, Chunks: []holdfast.Piece{{Digest: a.hash.Sum(big), Len: block}}, Payload: big})
		},
		"refs from the back to the front": func(a *agent) {
			a.try(wire.TypePlace, 0, wire.Place{Refs: []holdfast.Ref{{Extent: holdfast.Extent{Off: block, Len: block}}, {Extent: holdfast.Extent{Len: block}}}})
		},
		"a ref of no length": func(a *agent) {
			a.try(wire.TypePlace, 0, wire.Place{Refs: []holdfast.Ref{{Extent: holdfast.Extent{Off: 5}}}})
		},
		"a negative offset": func(a *agent) {
			a.try(wire.TypePlace, 0, wire.Place{Refs: []holdfast.Ref{{Extent: holdfast.Extent{Off: -block, Len: block}}}})
		},
		"a ref beyond its chunk": func(a *agent) {
			a.try(wire.TypePut, 0, &holdfast.Group{Chunks: []holdfast.Piece{{Digest: a.hash.Sum(big), Len: block}}, Payload: big})
			a.try(wire.TypePlace, 0, wire.Place{Refs: []holdfast.Ref{{Extent: holdfast.Extent{Len: block}, Digest: a.hash.Sum(big), Skip: 1}}})
			a.try(wire.TypeDiskDone, 0, nil)
		},
		"a question about too many chunks": func(a *agent) {
			a.try(wire.TypeAsk, 0, wire.Ask{Digests: make([]holdfast.Digest, wire.MaxAsk+1)})
		},
		"two commits": func(a *agent) {
			a.try(wire.TypeDiskDone, 0, nil)
			a.try(wire.TypeCommit, 0, a.m)
			a.try(wire.TypeCommit, 0, a.m)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := openHouse(t)
			a := h.agent(nil).begin().start(h.vm, [][]byte{make([]byte, 8*block)})
			lie(a)
			if a.refused {
				a.link.Abort(errors.New("refused to send"))
			} else if err := a.fails(); err == nil {
				t.Error("the agent was told nothing")
			}
			err := <-h.ended
			committed := h.listed()
			if name == "two commits" { // the first was honest
				if len(committed) != 1 {
					t.Errorf("listed: %v", committed)
				}
				return
			}
			if err == nil || len(committed) != 0 {
				t.Errorf("the session ended with %v; listed: %v", err, committed)
			}
			if ds := h.medium.Digests(); len(ds) != 0 {
				t.Errorf("%d chunks are needed by sets", len(ds))
			}
		})
	}
}

// try sends what an honest agent would not, and notes where its own side refuses that.
func (a *agent) try(typ wire.Type, channel uint16, body any) {
	a.t.Helper()
	if a.refused {
		return
	}
	err := func() (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = holdfast.Errorf(holdfast.Invalid, "encode", "%v", r)
			}
		}()
		return a.link.Send(a.t.Context(), wire.Message{Type: typ, Channel: channel, Body: body})
	}()
	a.refused = err != nil && a.link.Err() == nil
}

// Goal: the time of a set is the appliance's, whatever an agent says.
func TestTimeIsTheAppliances(t *testing.T) {
	h := openHouse(t)
	a := h.agent(nil).begin().start(h.vm, [][]byte{make([]byte, block)})
	a.m.Created = time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	a.disk(0, make([]byte, block), nil)
	m := a.commit()
	a.close()
	if err := <-h.ended; err != nil {
		t.Fatal(err)
	}
	if m.Created.Year() > 2090 || time.Since(m.Created) > time.Hour {
		t.Errorf("the set is of %v", m.Created)
	}
}

// Goal: an agent that floods the appliance does not stop another one's backup. Method: four sessions put groups as fast as they can, for as long
// as a fifth backs a VM up; it must end, and restore. What a session may have under way is bounded (maxPuts), and workers take turns.
func TestFloodingAgentStopsNobody(t *testing.T) {
	h := openHouse(t)
	var stop atomic.Bool
	var puts atomic.Int64
	done, flooded := make(chan struct{}, 4), make(chan struct{})
	for i := range 4 {
		a := h.agent(nil).begin().start(h.vm, [][]byte{make([]byte, 8*block)})
		go func() {
			defer func() { done <- struct{}{} }()
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			p := make([]byte, block)
			for !stop.Load() {
				for j := 0; j < len(p); j += 97 {
					p[j] = byte(rng.Uint32())
				}
				g := &holdfast.Group{Chunks: []holdfast.Piece{{Digest: a.hash.Sum(p), Len: block}}, Payload: bytes.Clone(p)}
				if a.link.Send(t.Context(), wire.Message{Type: wire.TypePut, Channel: 0, Body: g}) != nil {
					return
				}
				if puts.Add(1) == 100 {
					close(flooded)
				}
			}
			a.link.Abort(errors.New("enough"))
		}()
	}
	<-flooded
	before := puts.Load()
	images := [][]byte{image(1, 80)}
	a := h.agent(nil).begin().start(h.vm, images)
	a.disk(0, images[0], nil)
	m := a.commit()
	a.close()
	stop.Store(true)
	for range 4 {
		<-done
	}
	ended := 0
	for range 5 {
		if err := <-h.ended; err == nil {
			ended++
		}
	}
	if ended != 1 {
		t.Errorf("%d sessions ended well", ended)
	}
	t.Logf("%d groups of others came in the meantime", puts.Load()-before)
	same(t, h.restored(m.ID), images)
}
