package dedup

import (
	"bytes"
	"encoding/json"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// roots checks the few objects that are neither containers nor sets: the superblock's two copies and the count of generations. Nobody would miss
// the first copy that goes bad, because the pool opens with the other; so it is reported, and written anew from the good one.
func (v *verifier) roots() error {
	p := v.p
	var good []byte
	var bad []string
	for _, name := range []string{superblockName, superblockCopy} {
		b, err := blob.ReadAll(v.ctx, p.med, name, maxFrame)
		if err == nil {
			_, err = parseSuperblock(p.sb.Kind, b)
		}
		switch k := holdfast.KindOf(err); {
		case err == nil && good != nil && !bytes.Equal(b, good):
			err = holdfast.Errorf(holdfast.Corrupt, "read superblock", "the two copies differ")
			v.damage(pools.Damage{Where: name, Text: err.Error()})
		case err == nil:
			good = b
		case k == holdfast.Corrupt || k == holdfast.NotExist || k == holdfast.Unsupported:
			bad = append(bad, name)
			v.damage(pools.Damage{Where: name, Text: "a copy of the pool's superblock is damaged and is written anew: " + err.Error()})
		default:
			return err
		}
	}
	for _, name := range bad {
		if good != nil {
			_ = blob.WriteAll(v.ctx, p.med, name, good) // the next Verify says it again if it did not work
		}
	}
	return v.owner()
}

// owner checks the count of generations. It is made anew far above every one that can have been given.
func (v *verifier) owner() error {
	p := v.p
	if !p.ownerFile {
		return nil
	}
	p.idMu.Lock()
	defer p.idMu.Unlock()
	b, err := blob.ReadAll(v.ctx, p.med, ownerName, maxFrame)
	if err == nil {
		var j []byte
		if j, err = parseFrame(b); err == nil {
			var o owner
			if e := json.Unmarshal(j, &o); e != nil {
				err = holdfast.Errorf(holdfast.Corrupt, "read owner", "%w", e)
			}
		}
	}
	if k := holdfast.KindOf(err); err == nil || k == holdfast.NotExist {
		return nil // none yet
	} else if k != holdfast.Corrupt {
		return err
	}
	v.damage(pools.Damage{Where: ownerName, Text: "the count of the pool's writers is damaged and is written anew: " + err.Error()})
	if g, err := p.nextGeneration(); err == nil && p.generation == 0 {
		p.generation = g
	}
	return nil
}
