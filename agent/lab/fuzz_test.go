package lab

import (
	"bytes"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// FuzzTrackHead: what parses is written again identically, apart from bytes that have no meaning.
func FuzzTrackHead(f *testing.F) {
	h := trackHead{State: trackOpen, Disk: holdfast.DiskID{ID: holdfast.NewID()}, Before: holdfast.NewID(), Size: 1 << 30, Epoch: 7}
	f.Add(h.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeTrackHead(b)
		if err != nil {
			return
		}
		again, err := decodeTrackHead(h.encode())
		if err != nil || again != h {
			t.Errorf("%+v became %+v, %v", h, again, err)
		}
	})
}

// FuzzVMFile: what parses is written again and parses to the same.
func FuzzVMFile(f *testing.F) {
	f.Add([]byte(`{"format":1,"id":"adb8594e-29c5-47d8-93d3-34172cc04fdd","name":"vm","generation":1,"state":"off","revision":1,"epoch":1,"disks":[` +
		`{"id":"be15144c-cebf-4633-9a2d-3bcfb1e72751","name":"x.vhdx","path":"x.hf-1.avhdx","parents":["x.vhdx"],"controller":"ide","controller_no":0,"slot":0}],` +
		`"checkpoints":[{"id":"450ac49d-42b0-43a5-8f12-04af2d4ad864","kind":"recovery","created":"2026-01-02T03:04:05Z","epoch":1,"frozen":{"be15144c-cebf-4633-9a2d-3bcfb1e72751":"x.vhdx"}}],` +
		`"merging":{"checkpoint":"450ac49d-42b0-43a5-8f12-04af2d4ad864","commit":true},"faults":{"slow-merge":"3s"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decodeVM(b)
		if err != nil {
			return
		}
		one, err := v.encode()
		if err != nil {
			return
		}
		v, err = decodeVM(one)
		if err != nil {
			t.Fatalf("%v\n%s", err, one)
		}
		if two, err := v.encode(); err != nil || !bytes.Equal(one, two) {
			t.Errorf("%s became %s, %v", one, two, err)
		}
	})
}
