package vhdx

// allocator knows which MiB of the file are in use.
type allocator struct {
	used []uint64 // one bit per MiB
	end  int64    // MiB after the last used one
	free int64    // unused MiB before end
}

func (a *allocator) has(i int64) bool {
	return i/64 < int64(len(a.used)) && a.used[i/64]>>(i%64)&1 != 0
}

// mark takes [off, off+n) and reports whether all of it was free. off is a multiple of 1 MiB, n is rounded up.
func (a *allocator) mark(off, n int64) bool {
	first, last := off/mib, (off+n+mib-1)/mib
	for int64(len(a.used))*64 < last {
		a.used = append(a.used, 0)
	}
	clean := true
	for i := first; i < last; i++ {
		if a.has(i) {
			clean = false
			continue
		}
		a.used[i/64] |= 1 << (i % 64)
		if i < a.end {
			a.free--
		}
	}
	if last > a.end {
		a.free += max(first-a.end, 0)
		a.end = last
	}
	return clean
}

// release gives [off, off+n) back.
func (a *allocator) release(off, n int64) {
	first, last := off/mib, (off+n)/mib
	for i := first; i < last; i++ {
		a.used[i/64] &^= 1 << (i % 64)
	}
	a.free += last - first
}

// take finds n bytes, marks them and returns their offset; fresh says that they are past the end of what was in use.
func (a *allocator) take(n int64) (off int64, fresh bool) {
	want := n / mib
	if a.free >= want {
		run := int64(0)
		for i := int64(0); i < a.end; i++ {
			if i%64 == 0 && a.used[i/64] == ^uint64(0) {
				run, i = 0, i+63
				continue
			}
			if a.has(i) {
				run = 0
				continue
			}
			if run++; run == want {
				off := (i + 1 - want) * mib
				a.mark(off, n)
				return off, false
			}
		}
	}
	off = a.end * mib
	a.mark(off, n)
	return off, true
}
