// Everything of the end-of-page resource that ends in a report, and what fault reports ask of it.

#include "metadata/remains.hpp"
#include "report/copies.hpp"
#include "resources/block_reports.hpp"
#include "resources/bytes.hpp"
#include "resources/end_of_page_core.hpp"
#include "resources/leak_listing.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <mutex>
#include <string_view>
#include <thread>

namespace pmr_debug::detail::fence {

namespace {

const unsigned char* bytes_at(std::uintptr_t address) noexcept {
    return reinterpret_cast<const unsigned char*>(address);
}

/// What is known of a slot that was used.
struct description {
    block_info block;
    trace_id allocated = trace_id::none;
    trace_id freed = trace_id::none;
};

description describe_slot(const fence_core& core, slot_ref s) noexcept {
    const slot_record& record = s.record();
    const slot_state state = record.state.load(std::memory_order_acquire);
    const bool live = state == slot_state::live;
    description d;
    d.block.address = bytes_at(address_of(core, s));
    d.block.size = record.size;
    d.block.alignment = std::size_t{1} << record.alignment;
    d.block.serial = s.owner->first_serial + s.index;
    d.block.state = live ? block_state::live : block_state::freed;
    d.block.alloc_thread = record.alloc_thread;
    d.allocated = record.allocated;
    if (!live) {
        d.block.free_thread = record.free_thread;
        d.freed = record.freed;
    }
    return d;
}

void add_block(const fence_core& core, slot_ref s, report& r) noexcept {
    const description d = describe_slot(core, s);
    r.block = d.block;
    r.allocated = d.allocated;
    r.freed = d.freed;
}

/// True if the slot's record describes a block.
bool was_used(slot_ref s) noexcept {
    return s.owner != nullptr && s.index < s.owner->capacity &&
           s.record().state.load(std::memory_order_acquire) != slot_state::never;
}

PMR_DEBUG_UNSEEN_BY_ASAN void note_damage(std::uintptr_t from, std::uintptr_t to, unsigned char expected,
                                          report& r) noexcept {
    const os::unseen_by_valgrind hidden(true);
    for (const unsigned char *p = bytes_at(from), *const end = bytes_at(to); p != end; ++p) {
        if (*p != expected) {
            if (r.first_bad == nullptr) {
                r.first_bad = p;
                r.bad_value = *p;
                r.expected_value = expected;
            }
            r.bad_bytes += 1;
        }
    }
}

/// A hint for blocks without guard page: text in a buffer of its own.
class unguarded_hint {
public:
    explicit unguarded_hint(const fence_core& core) noexcept {
        add("the block has no guard page, so this was found late; blocks without one so far: ");
        const auto done =
            std::to_chars(text_ + length_, text_ + sizeof text_, core.unguarded_blocks.load(std::memory_order_relaxed));
        length_ = static_cast<std::size_t>(done.ptr - text_);
    }
    [[nodiscard]] std::string_view text() const noexcept { return {text_, length_}; }

private:
    void add(std::string_view s) noexcept {
        std::memcpy(text_, s.data(), s.size());
        length_ = s.size();
    }
    char text_[128]{};
    std::size_t length_ = 0;
};

/// Effects: looks whether a live block of another resource covers one of the bytes of [from, to) that are not
/// \p expected, and says so in \p r, which tells of the slot.
void note_covering(const fence_core& core, slot_ref s, std::uintptr_t from, std::uintptr_t to, unsigned char expected,
                   report& r) noexcept {
    if (core.guarded_range() || r.covering.address != nullptr) {
        return;  // in a range of its own no other's block lies
    }
    const metadata::own_memory mine{s.owner->base, s.owner->size, reinterpret_cast<std::uintptr_t>(r.block.address),
                                    r.block.size};
    if (const covering_block found = covering_damage(from, to, expected, false, mine, core.self); found.owner.id != 0) {
        add_covering(r, found.owner, found.block);
    }
}

void report_damage(fence_core& core, slot_ref s, error_kind kind, std::uintptr_t from, std::uintptr_t to) noexcept {
    report r = report_of(core.self, kind);
    add_block(core, s, r);
    // It is being freed just now, or was found live: in both cases nobody freed it before.
    r.block.state = block_state::live;
    r.block.free_thread = 0;
    r.freed = trace_id::none;
    note_damage(from, to, canary_byte, r);
    const unguarded_hint hint(core);
    if (s.record().guard == os::guard_tier::none) {
        r.hint = hint.text();
    }
    note_covering(core, s, from, to, canary_byte, r);
    raise(core.errors, r);
}

/// Bytes from the block to \p address: 0 within, negative before, positive behind (0 behind: 1).
std::size_t distance(const fence_core& core, slot_ref s, std::uintptr_t address) noexcept {
    const std::uintptr_t start = address_of(core, s);
    const std::uintptr_t end = start + s.record().size;
    return address < start ? start - address : address < end ? 0 : address - end;
}

/// The used slot nearest to \p address: its own, or the neighbour's across the guard page; none if neither was used.
slot_ref nearest(const fence_core& core, slot_ref s, std::uintptr_t address) noexcept {
    slot_ref best;
    for (const std::uint32_t i : {s.index, s.index + 1, s.index - 1}) {
        const slot_ref other{s.owner, i};
        if (was_used(other) &&
            (best.owner == nullptr || distance(core, other, address) < distance(core, best, address))) {
            best = other;
        }
    }
    return best;
}

}  // namespace

void report_canaries(fence_core& core, slot_ref s) noexcept {
    const canaries c = canaries_of(core, s);
    if (!all_seen(core, c.front, c.block, canary_byte)) {
        report_damage(core, s, error_kind::underrun, c.front, c.block);
    }
    if (!all_seen(core, c.end, c.back, canary_byte)) {
        report_damage(core, s, error_kind::overrun, c.end, c.back);
    }
}

report note_written(fence_core& core, slot_ref s) noexcept {
    report r = report_of(core.self, error_kind::write_after_free);
    add_block(core, s, r);
    const canaries c = canaries_of(core, s);
    note_damage(c.front, c.block, canary_byte, r);
    if (core.rules.fill) {
        note_damage(c.block, c.end, freed_byte, r);
    }
    note_damage(c.end, c.back, canary_byte, r);
    note_covering(core, s, c.front, c.block, canary_byte, r);
    if (core.rules.fill) {
        note_covering(core, s, c.block, c.end, freed_byte, r);
    }
    note_covering(core, s, c.end, c.back, canary_byte, r);
    s.record().state.store(slot_state::damaged, std::memory_order_release);
    s.owner->damaged.store(true, std::memory_order_relaxed);
    return r;
}

void report_request(fence_core& core, error_kind kind, const void* p, std::size_t bytes,
                    std::size_t alignment) noexcept {
    report r = call_report(core.self, kind, p, bytes, alignment);
    raise(core.errors, r);
}

void report_upstream(fence_core& core, error_kind kind, const void* p, std::size_t bytes,
                     std::size_t alignment) noexcept {
    report r = call_report(core.self, kind, p, bytes, alignment);
    if (kind == error_kind::upstream_overlap) {
        const auto address = reinterpret_cast<std::uintptr_t>(p);
        unit* const u = find_unit(core, address);
        if (const slot_ref s = u != nullptr ? nearest(core, slot_at(*u, address), address) : slot_ref{};
            s.owner != nullptr) {
            add_block(core, s, r);
        }
    }
    raise(core.errors, r);
}

void report_limit(fence_core& core, std::size_t limit, std::size_t in_use, std::size_t bytes,
                  std::size_t alignment) noexcept {
    report r = call_report(core.self, error_kind::limit_exceeded, nullptr, bytes, alignment);
    r.limit = limit;
    r.in_use = in_use;
    raise(core.errors, r);
}

slot_ref examine_free(fence_core& core, void* p, std::size_t bytes, std::size_t alignment) noexcept {
    report r = call_report(core.self, error_kind::invalid_free, p, bytes, alignment);
    if (p == nullptr) {
        r.kind = error_kind::null_free;
        raise(core.errors, r);
        return {};
    }
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    unit* const u = find_unit(core, address);
    const slot_ref s = u != nullptr ? slot_at(*u, address) : slot_ref{};
    const bool starts_here = was_used(s) && address_of(core, s) == address;
    const slot_state state = was_used(s) ? s.record().state.load(std::memory_order_acquire) : slot_state::never;
    const bool fits = starts_here && s.record().size == bytes && (std::size_t{1} << s.record().alignment) == alignment;
    if (starts_here && (state != slot_state::live || fits)) {
        return s;  // the exchange of the state will tell
    }
    // A resource above this one may have carved its block from here; in a unit, the memory is not an upstream's to own.
    metadata::owned_block theirs;
    if (const resource_ref owner =
            find_owner_anywhere(p, core.self, u != nullptr ? metadata::below::stop : metadata::below::ask, &theirs);
        owner.id != 0) {
        r.kind = error_kind::wrong_resource;
        r.owner = owner;
        r.block = theirs.block;
        r.allocated = theirs.allocated;
        raise(core.errors, r);
        return {};
    }
    if (starts_here) {
        add_block(core, s, r);
        if (s.record().size != bytes) {
            r.kind = error_kind::size_mismatch;
            raise(core.errors, r);
        }
        if ((std::size_t{1} << s.record().alignment) != alignment) {
            r = call_report(core.self, error_kind::alignment_mismatch, p, bytes, alignment);
            add_block(core, s, r);
            raise(core.errors, r);
        }
        return s;
    }
    if (const slot_ref close = u != nullptr ? nearest(core, s, address) : slot_ref{}; close.owner != nullptr) {
        add_block(core, close, r);
        if (distance(core, close, address) == 0 && address != address_of(core, close) + close.record().size) {
            r.kind = error_kind::interior_free;
        } else {
            r.nearest_only = true;
        }
    } else if (u == nullptr && address - core.base < core.range_bytes &&
               core.uses[(address - core.base) >> granule_shift].load(std::memory_order_relaxed) ==
                   granule_use::sealed) {
        r.kind = error_kind::double_free;
        r.hint =
            "the memory belonged to this resource and was retired long ago; its record was given up (options: "
            "retired_record_bytes)";
    } else if (u == nullptr) {
        add_former_owner(r, nullptr);
    }
    raise(core.errors, r);
    return {};
}

void report_not_live(fence_core& core, slot_ref s, slot_state found, void* p, std::size_t bytes,
                     std::size_t alignment) noexcept {
    // Whoever is freeing it will have written the trace that is wanted.
    while (found == slot_state::freeing && s.record().state.load(std::memory_order_acquire) == found) {
        std::this_thread::yield();
    }
    report r = call_report(core.self, error_kind::double_free, p, bytes, alignment);
    add_block(core, s, r);
    raise(core.errors, r);
}

std::size_t check_all(fence_core& core) noexcept {
    std::size_t damaged = 0;
    // No other thread uses the resource, and a handler must be free to: walk without the lock.
    for (unit* u = core.active.first; u != nullptr; u = u->after) {
        for (std::uint32_t i = 0; i < u->next; ++i) {
            const slot_ref s{u, i};
            const slot_state state = s.record().state.load(std::memory_order_acquire);
            if (state == slot_state::live) {
                damaged += core.window != 0 && !verify_canaries(core, s) ? 1 : 0;
            } else if (state == slot_state::freed && !fill_intact(core, s)) {
                const std::size_t waited = os::round_up(s.record().size, page);
                report r = note_written(core, s);
                core.pending_bytes.fetch_sub(waited, std::memory_order_relaxed);
                raise(core.errors, r);
                ++damaged;
            }
        }
    }
    if (core.guarded_range()) {
        return damaged;  // dead units are trapped
    }
    for (const unit_list* const list : {&core.retired, &core.kept}) {
        for (unit* u = list->first; u != nullptr; u = u->after) {
            for (std::uint32_t i = 0; i < u->capacity; ++i) {
                const slot_ref s{u, i};
                if (s.record().state.load(std::memory_order_acquire) == slot_state::freed && !fill_intact(core, s)) {
                    report r = note_written(core, s);
                    raise(core.errors, r);
                    ++damaged;
                }
            }
        }
    }
    return damaged;
}

std::size_t report_live(fence_core& core) noexcept {
    leak_listing listing(core.self);
    {
        const std::scoped_lock hold(core.lock);
        for (unit* u = core.active.first; u != nullptr; u = u->after) {
            for (std::uint32_t i = 0; i < u->capacity; ++i) {
                const slot_ref s{u, i};
                if (s.record().state.load(std::memory_order_acquire) == slot_state::live) {
                    listing.add(s.record().allocated, s.record().size, bytes_at(address_of(core, s)),
                                u->first_serial + i);
                }
            }
        }
    }
    if (listing.blocks() == 0) {
        return 0;
    }
    report r = report_of(core.self, error_kind::leak);
    listing.fill(r);
    raise(core.errors, r);
    return r.leaked_blocks;
}

void leave_remains(fence_core& core, bool any_live) noexcept {
    metadata::leave_behind_filled(core.self, [&](metadata::remains& left) noexcept {
        const std::scoped_lock hold(core.lock);
        for (unit* u = core.active.first; u != nullptr; u = u->after) {
            left.add_range(u->base, u->size);
            for (std::uint32_t i = 0; any_live && !left.full() && i < u->capacity; ++i) {
                const slot_ref s{u, i};
                if (s.record().state.load(std::memory_order_acquire) == slot_state::live) {
                    const description d = describe_slot(core, s);
                    left.add_block(d.block, d.allocated);
                }
            }
        }
    });
}

bool owns(void* core, const void* p, metadata::owned_block* out) noexcept {
    const auto& mine = *static_cast<const fence_core*>(core);
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    unit* const u = find_unit(mine, address);
    const slot_ref s = u != nullptr ? slot_at(*u, address) : slot_ref{};
    if (u == nullptr || s.index >= u->capacity ||
        s.record().state.load(std::memory_order_acquire) != slot_state::live || address_of(mine, s) != address) {
        return false;
    }
    const description d = describe_slot(mine, s);
    *out = {.block = d.block, .allocated = d.allocated};
    return true;
}

bool describe_address(void* core, std::uintptr_t address, metadata::address_finding* out) noexcept {
    using what = metadata::address_finding::what;
    const auto& mine = *static_cast<const fence_core*>(core);
    unit* const u = find_unit(mine, address);
    metadata::address_finding found;
    if (u == nullptr) {
        if (address - mine.base >= mine.range_bytes) {
            return false;
        }
        const granule_use use = mine.uses[(address - mine.base) >> granule_shift].load(std::memory_order_relaxed);
        if (mine.piecemeal != 0 && (use == granule_use::untouched || use == granule_use::foreign)) {
            return false;  // there may be others' memory
        }
        found.is = use == granule_use::sealed ? what::retired_unit : what::never_used;
        *out = found;
        return true;
    }
    const slot_ref own = slot_at(*u, address);
    const slot_ref s = nearest(mine, own, address);
    if (s.owner == nullptr) {
        found.is = what::never_used;
        *out = found;
        return true;
    }
    const description d = describe_slot(mine, s);
    *out = metadata::find_in(address, d.block, d.allocated, d.freed);
    return true;
}

}  // namespace pmr_debug::detail::fence
