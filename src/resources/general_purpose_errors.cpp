// Everything of the general-purpose resource that ends in a report. Nothing here is fast, and no lock is held while a
// handler runs.

#include "metadata/remains.hpp"
#include "report/copies.hpp"
#include "resources/block_reports.hpp"
#include "resources/general_purpose_memory.hpp"
#include "resources/leak_listing.hpp"

#include <algorithm>
#include <bit>
#include <mutex>
#include <thread>

namespace pmr_debug::detail {

namespace {

using metadata::address_map;

bool has_traces(const general_purpose_core& core) noexcept {
    return core.record_bytes == sizeof(traced_record);
}

std::uint64_t serial_of(slot_ref s) noexcept {
    const slot_history* const h = s.owner->history.load(std::memory_order_acquire);
    return h != nullptr && h[s.index].owners != 0 ? h[s.index].serial : s.owner->first_serial + s.index;
}

/// Effects: writes what is known of slot \p s into \p r.
void describe_block(const general_purpose_core& core, slot_ref s, report& r) noexcept {
    const slot_record& record = s.record(core);
    const slot_state state = record.state.load(std::memory_order_acquire);
    r.block.address = s.block(core);
    r.block.size = s.requested(core);
    r.block.alignment = std::size_t{1} << record.alignment;
    r.block.state = state == slot_state::live ? block_state::live : block_state::freed;
    // The last number stands for all later ones, too.
    constexpr std::uint16_t late = late_threads;
    r.block.late_alloc_thread = record.alloc_thread == late;
    r.block.alloc_thread = r.block.late_alloc_thread ? 0 : record.alloc_thread;
    if (state != slot_state::live) {
        r.block.late_free_thread = record.free_thread == late;
        r.block.free_thread = r.block.late_free_thread ? 0 : record.free_thread;
    }
    r.block.serial = serial_of(s);
    if (const slot_history* const h = s.owner->history.load(std::memory_order_acquire);
        h != nullptr && h[s.index].owners > 1) {
        // A slot that is ready has the history of an owner that is still to come, and the record of the one before,
        // whose number is not known any more unless it was the first.
        const bool is_to_come = state == slot_state::ready;
        const auto owners = static_cast<std::uint32_t>(h[s.index].owners) - (is_to_come ? 1U : 0U);
        r.block.owners = owners > 1 ? owners : r.block.owners;
        if (is_to_come) {
            r.block.serial = owners == 1 ? s.owner->first_serial + s.index : 0;
        } else {
            r.former_allocated = h[s.index].former_allocated;
            r.former_freed = h[s.index].former_freed;
        }
    }
    if (has_traces(core)) {
        const auto& traced = static_cast<const traced_record&>(record);
        r.allocated = traced.allocated;
        r.freed = state == slot_state::live ? trace_id::none : traced.freed;
    }
}

bool was_used(const general_purpose_core& core, slot_ref s) noexcept {
    return s.record(core).state.load(std::memory_order_acquire) != slot_state::never;
}

std::size_t distance(std::uintptr_t address, slot_ref s, const general_purpose_core& core) noexcept {
    const auto start = reinterpret_cast<std::uintptr_t>(s.block(core));
    const std::uintptr_t end = start + s.requested(core);
    return address < start ? start - address : address >= end ? address - end : 0;
}

/// The used slot of \p u that is nearest to \p address; none if no slot was used.
slot_ref nearest_in(const general_purpose_core& core, unit& u, std::uintptr_t address) noexcept {
    slot_ref best;
    std::size_t least = SIZE_MAX;
    for (std::uint32_t i = 0; i < u.capacity; ++i) {
        const slot_ref s{&u, i};
        if (was_used(core, s) && distance(address, s, core) < least) {
            least = distance(address, s, core);
            best = s;
        }
    }
    return best;
}

constexpr std::string_view forgotten_hint =
    "The memory belonged to this resource and was retired long ago; its record was given up "
    "(options: retired_record_bytes).";

/// Farther away a block has nothing to do with a stray pointer.
constexpr std::uintptr_t neighbourhood = std::uintptr_t{1} << 16;

/// The used slot nearest to \p address within the neighbourhood, in any unit.
slot_ref nearest_block(general_purpose_core& core, std::uintptr_t address) noexcept {
    const std::scoped_lock hold(core.lock);
    slot_ref best;
    std::size_t least = neighbourhood;
    for (unit* u = core.units; u != nullptr; u = u->following) {
        if (address + neighbourhood < u->base || address > u->base + u->size + neighbourhood) {
            continue;
        }
        const slot_ref s = nearest_in(core, *u, address);
        if (s.owner != nullptr && distance(address, s, core) < least) {
            least = distance(address, s, core);
            best = s;
        }
    }
    return best;
}

/// The unit of this resource that holds \p address, also where the map does not reach, or null.
unit* unit_of(general_purpose_core& core, std::uintptr_t address) noexcept {
    if (auto* const r = address_map::find(address, &core); r != nullptr) {
        return static_cast<unit*>(r);
    }
    const std::scoped_lock hold(core.lock);
    for (unit* u = core.units; u != nullptr; u = u->following) {
        if (u->size > address_map::indexed_bytes && address - u->base < u->size) {
            return u;
        }
    }
    return nullptr;
}

/// Whether \p address lies in memory of this resource whose records were given up.
bool is_forgotten(general_purpose_core& core, std::uintptr_t address) noexcept {
    const std::scoped_lock hold(core.lock);
    for (const chunk* c = core.chunks; c != nullptr; c = c->next) {
        if (address - c->base < c->carved) {
            return true;
        }
    }
    return false;
}

/// Effects: if a live block of another resource starts at \p p, reports that. \p upstreams: below::stop where \p p lies
///   in memory of this resource, given up or not: a block of an upstream that starts there is not what was freed.
/// Returns: true if so.
bool report_other_owner(general_purpose_core& core, void* p, std::size_t bytes, std::size_t alignment,
                        metadata::below upstreams) noexcept {
    metadata::owned_block found;
    const resource_ref owner = find_owner_anywhere(p, core.record, upstreams, &found);
    if (owner.id == 0) {
        return false;
    }
    report r = call_report(core.record, error_kind::wrong_resource, p, bytes, alignment);
    r.owner = owner;
    r.block = found.block;
    r.allocated = found.allocated;
    raise_from(core, r);
    return true;
}

/// Effects: counts and notes the bytes of [p, p + n) that are not \p expected; nor 0, where that is allowed.
PMR_DEBUG_UNSEEN_BY_ASAN void note_damage(const unsigned char* p, std::size_t n, unsigned char expected, report& r,
                                          bool or_zero = false) noexcept {
    for (std::size_t i = 0; i < n; ++i) {
        if (p[i] != expected && (!or_zero || p[i] != 0)) {
            if (r.first_bad == nullptr) {
                r.first_bad = p + i;
                r.bad_value = p[i];
                r.expected_value = or_zero ? static_cast<unsigned char>(0) : expected;
            }
            r.bad_bytes += 1;
        }
    }
}

/// Effects: looks whether a live block of another resource covers one of the bytes [from, from + bytes) that are not
///   \p expected, nor 0 where that is allowed, and says so in \p r. They lie in \p u, in its block \p block or around
///   it.
/// Returns: true if so: they may be right as they are.
bool note_covering(const general_purpose_core& core, const unit& u, const block_info& block, const unsigned char* from,
                   std::size_t bytes, unsigned char expected, bool or_zero, report& r) noexcept {
    const auto start = reinterpret_cast<std::uintptr_t>(from);
    const metadata::own_memory mine{.from = u.from != nullptr ? u.from->base : u.base,
                                    .bytes = u.from != nullptr ? u.from->size : u.size,
                                    .block = reinterpret_cast<std::uintptr_t>(block.address),
                                    .block_bytes = block.size};
    const covering_block found = covering_damage(start, start + bytes, expected, or_zero, mine, core.record);
    if (found.owner.id != 0) {
        add_covering(r, found.owner, found.block);
    }
    return found.owner.id != 0;
}

void report_invalid(general_purpose_core& core, void* p, std::size_t bytes, std::size_t alignment) noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    report r = call_report(core.record, error_kind::invalid_free, p, bytes, alignment);
    if (unit_of(core, address) == nullptr && is_forgotten(core, address)) {
        r.kind = error_kind::double_free;
        r.hint = forgotten_hint;
        raise_from(core, r);
        return;
    }
    const slot_ref near = nearest_block(core, address);
    if (!add_former_owner(r, near.owner != nullptr ? near.block(core) : nullptr) && near.owner != nullptr) {
        describe_block(core, near, r);
        r.nearest_only = true;
    }
    raise_from(core, r);
}

}  // namespace

bool owns_block(void* core, const void* p, metadata::owned_block* out) noexcept {
    auto& mine = *static_cast<general_purpose_core*>(core);
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    auto* const u = static_cast<unit*>(address_map::find(address, core));
    if (u == nullptr || mine.record_bytes == 0) {
        return false;
    }
    const slot_ref s = slot_holding(*u, address);
    if (s.index >= u->capacity || s.block(mine) != p ||
        s.record(mine).state.load(std::memory_order_acquire) != slot_state::live) {
        return false;
    }
    report r;
    describe_block(mine, s, r);
    out->block = r.block;
    out->allocated = r.allocated;
    return true;
}

bool describe_address(void* core, std::uintptr_t address, metadata::address_finding* out) noexcept {
    using what = metadata::address_finding::what;
    const auto& mine = *static_cast<const general_purpose_core*>(core);
    auto* u = static_cast<unit*>(address_map::find(address, core));
    // The lists may change meanwhile, and even form circles.
    constexpr int longest_list = 1 << 20;
    int left = longest_list;
    for (unit* each = mine.units; u == nullptr && each != nullptr && left != 0; each = each->following, --left) {
        u = each->size > address_map::indexed_bytes && address - each->base < each->size ? each : nullptr;
    }
    if (u == nullptr) {
        for (const chunk* c = mine.chunks; c != nullptr && left != 0; c = c->next, --left) {
            if (address - c->base < c->size) {
                out->is = address - c->base < c->carved ? what::retired_unit : what::never_used;
                return true;
            }
        }
        return false;
    }
    slot_ref s = slot_holding(*u, address);
    if (address < u->first && u->first - address <= u->front()) {
        s.index = 0;  // in its canary
    }
    if (s.index >= u->capacity || mine.record_bytes == 0) {
        out->is = u->trapped() ? what::retired_unit : what::never_used;
        return true;
    }
    if (!was_used(mine, s)) {
        out->is = u->forgets(s.index, mine.record_bytes) ? what::retired_unit : what::never_used;
        return true;
    }
    report r;
    describe_block(mine, s, r);
    *out = metadata::find_in(address, r.block, r.allocated, r.freed);
    if (r.block.state != block_state::live) {
        out->is = what::freed_block;  // all of its slot was trapped with it
    }
    return true;
}

slot_ref examine_free(general_purpose_core& core, void* p, std::size_t bytes, std::size_t alignment) noexcept {
    if (p == nullptr) {
        report r = call_report(core.record, error_kind::null_free, p, bytes, alignment);
        raise_from(core, r);
        return {};
    }
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    unit* const u = unit_of(core, address);
    if (u == nullptr) {
        const auto upstreams = is_forgotten(core, address) ? metadata::below::stop : metadata::below::ask;
        if (!report_other_owner(core, p, bytes, alignment, upstreams)) {
            report_invalid(core, p, bytes, alignment);
        }
        return {};
    }
    const slot_ref s = slot_holding(*u, address);
    if (s.index < u->capacity && !was_used(core, s) && u->forgets(s.index, core.record_bytes)) {
        if (!report_other_owner(core, p, bytes, alignment, metadata::below::stop)) {
            report r = call_report(core.record, error_kind::double_free, p, bytes, alignment);
            r.hint = forgotten_hint;
            raise_from(core, r);
        }
        return {};
    }
    if (s.index >= u->capacity || !was_used(core, s)) {
        if (!report_other_owner(core, p, bytes, alignment, metadata::below::stop)) {
            report_invalid(core, p, bytes, alignment);
        }
        return {};
    }
    const bool live = s.record(core).state.load(std::memory_order_acquire) == slot_state::live;
    const std::size_t size = s.requested(core);
    const std::size_t recorded_alignment = std::size_t{1} << s.record(core).alignment;
    const bool starts_here = s.block(core) == p;
    if (starts_here && (!live || (size == bytes && recorded_alignment == alignment))) {
        return s;  // a large block; or not live, which the exchange of the state will tell for certain
    }
    // A resource above this one may have carved its own block from here.
    if (report_other_owner(core, p, bytes, alignment, metadata::below::stop)) {
        return {};
    }
    const auto complain = [&](error_kind kind) {
        report r = call_report(core.record, kind, p, bytes, alignment);
        describe_block(core, s, r);
        if (r.block.owners > 1) {
            r.hint =
                "The address was used again after an earlier block was freed: the pointer may be that one's, and the "
                "block is now somebody else's.";
        }
        raise_from(core, r);
    };
    if (!starts_here) {
        complain(error_kind::interior_free);
        return {};
    }
    if (size != bytes) {
        complain(error_kind::size_mismatch);
    }
    if (recorded_alignment != alignment) {
        complain(error_kind::alignment_mismatch);
    }
    return s;
}

void report_not_live(general_purpose_core& core, slot_ref s, slot_state found, std::size_t bytes,
                     std::size_t alignment) noexcept {
    if (found == slot_state::never) {
        report_invalid(core, s.block(core), bytes, alignment);
        return;
    }
    while (found == slot_state::freeing && s.record(core).state.load(std::memory_order_acquire) == found) {
        std::this_thread::yield();
    }
    report r = call_report(core.record, error_kind::double_free, s.block(core), bytes, alignment);
    describe_block(core, s, r);
    if (r.block.owners > 1) {
        r.hint =
            "The address was used again after an earlier block was freed: one of the two frees may have been meant for "
            "that one.";
    }
    raise_from(core, r);
}

bool surroundings_intact(const general_purpose_core& core, slot_ref s) noexcept {
    const surroundings a = around(core, s);
    return all_bytes(a.front, bytes_between(a.front, a.block), fresh_byte) &&
           all_bytes(a.end, bytes_between(a.end, a.back), fresh_byte);
}

void report_surroundings(general_purpose_core& core, slot_ref s) noexcept {
    const surroundings a = around(core, s);
    report before = report_of(core.record, error_kind::underrun);
    describe_block(core, s, before);
    note_damage(a.front, bytes_between(a.front, a.block), fresh_byte, before);
    report behind = report_of(core.record, error_kind::overrun);
    describe_block(core, s, behind);
    const std::size_t slack = bytes_between(a.end, a.back);
    note_damage(a.end, slack, fresh_byte, behind);
    const auto* const first = static_cast<const unsigned char*>(behind.first_bad);
    if (first != nullptr && slack >= 16 && first >= a.back - 8) {
        behind.hint = "Only bytes next to the following block were written: that block may have been underrun instead.";
    }
    if (before.first_bad != nullptr) {
        note_covering(core, *s.owner, before.block, a.front, bytes_between(a.front, a.block), fresh_byte, false,
                      before);
        raise_from(core, before);
    }
    if (behind.first_bad != nullptr) {
        note_covering(core, *s.owner, behind.block, a.end, slack, fresh_byte, false, behind);
        raise_from(core, behind);
    }
}

report stray_write(general_purpose_core& core, const unsigned char* from, const unsigned char* to,
                   unsigned char expected) noexcept {
    report r = report_of(core.record, error_kind::overrun);
    note_damage(from, bytes_between(from, to), expected, r);
    const auto at = reinterpret_cast<std::uintptr_t>(r.first_bad);
    if (const slot_ref near = nearest_block(core, at); near.owner != nullptr) {
        describe_block(core, near, r);
        r.nearest_only = true;
    }
    r.hint =
        "The memory belongs to this resource and was never handed out: nobody may write to it. An index far out of "
        "range, or a stray pointer; the block is only the one that is nearest.";
    return r;
}

std::size_t verify_rest(general_purpose_core& core, unit& u) noexcept {
    if (u.rest_verified || core.record_bytes == 0 || !fills(core)) {
        return 0;
    }
    std::size_t damaged = 0;
    // Reported once: it is put right; or, where another's live block is, neither touched nor looked at any more.
    const auto settle = [&](report& r, const block_info& block, unsigned char* from, std::size_t bytes,
                            unsigned char expected, bool gone) noexcept {
        if (note_covering(core, u, block, from, bytes, expected, gone, r)) {
            u.rest_verified = true;
            u.damaged = true;
        } else {
            fill_memory(core, from, gone ? 0 : expected, bytes);
        }
        raise_from(core, r);
        ++damaged;
    };
    const auto verify = [&](unsigned char* all, unsigned char* behind, unsigned char expected) {
        if (all >= behind) {
            return;
        }
        for_each_part(u, all, bytes_between(all, behind),
                      [&](unsigned char* from, std::size_t bytes, bool gone) noexcept {
                          if (u.rest_verified || all_bytes(from, bytes, expected) ||
                              (gone && all_bytes_or_zero(from, bytes, expected))) {
                              return;
                          }
                          report r = stray_write(core, from, from + bytes, gone ? 0 : expected);
                          if (behind == slot_ref{&u, 0}.address() && was_used(core, {&u, 0})) {
                              // Before the block that was handed out first: its canary, though nobody has the block any
                              // more.
                              r = report_of(core.record, error_kind::underrun);
                              describe_block(core, {&u, 0}, r);
                              note_damage(from, bytes, expected, r, gone);
                          }
                          settle(r, {}, from, bytes, expected, gone);
                      });
    };
    unsigned char* const first = slot_ref{&u, 0}.address();
    const std::uint32_t prepared = u.prepared.load(std::memory_order_relaxed);
    const bool recycles = core.rules.freed == reuse::immediate;
    if (u.large || prepared != 0 || recycles) {
        // Before a block that is live its canary is looked at with it.
        const slot_state state = slot_ref{&u, 0}.record(core).state.load(std::memory_order_acquire);
        if (state != slot_state::live && state != slot_state::damaged && state != slot_state::freeing) {
            verify(first - u.front(), first, fresh_byte);
        }
    }
    if (u.large) {
        return damaged;
    }
    if (recycles) {  // filled when they are handed out
        for (std::uint32_t i = 0; i < u.capacity && u.zeroed; ++i) {
            if (const slot_ref s{&u, i}; !was_used(core, s) && u.waits(i)) {
                verify(s.address(), s.address() + u.slot_size, 0);
            }
        }
        if (u.zeroed) {
            verify(reinterpret_cast<unsigned char*>(u.slots_end()), rest_end(u), 0);
        }
        return damaged;
    }
    if (u.again.load(std::memory_order_acquire)) {
        // In a unit that is borrowed from its line, a slot that is ready is about to be handed out by another thread.
        for (std::uint32_t i = 0; i < u.capacity && !u.borrowed && !u.rest_verified; ++i) {
            const slot_ref s{&u, i};
            if (s.record(core).state.load(std::memory_order_acquire) == slot_state::ready &&
                !all_bytes(s.address(), u.slot_size, fresh_byte)) {
                report r = report_of(core.record, error_kind::write_after_free);
                describe_block(core, s, r);
                note_damage(s.address(), u.slot_size, fresh_byte, r);
                settle(r, r.block, s.address(), u.slot_size, fresh_byte, false);
            }
        }
        verify(reinterpret_cast<unsigned char*>(u.slots_end()), rest_end(u), fresh_byte);
        return damaged;
    }
    const std::uint32_t used = u.next.load(std::memory_order_relaxed);
    unsigned char* const unused = slot_ref{&u, used}.address();
    unsigned char* const filled = prepared == u.capacity ? rest_end(u) : slot_ref{&u, prepared}.address();
    verify(unused, filled, fresh_byte);
    if (u.zeroed) {
        verify(filled, rest_end(u), 0);
    }
    return damaged;
}

bool verify_freed(general_purpose_core& core, slot_ref s) noexcept {
    if (freed_intact(core, *s.owner, s.index)) {
        return true;
    }
    report r = report_of(core.record, error_kind::write_after_free);
    describe_block(core, s, r);
    for_each_part(*s.owner, s.address(), s.owner->slot_bytes(),
                  [&](const unsigned char* p, std::size_t n, bool gone) noexcept {
                      note_damage(p, n, freed_byte, r, gone);
                      if (r.covering.address == nullptr) {
                          note_covering(core, *s.owner, r.block, p, n, freed_byte, gone, r);
                      }
                  });
    s.record(core).state.store(slot_state::damaged, std::memory_order_release);
    s.owner->damaged = true;
    raise_from(core, r);
    return false;
}

bool bind_thread(general_purpose_core& core, os::thread_numbers thread) noexcept {
    std::atomic_ref<std::uint32_t> bound(core.bound_thread);
    std::uint32_t before = 0;
    if (bound.compare_exchange_strong(before, thread.number, std::memory_order_relaxed) || before == thread.number) {
        return true;
    }
    report r = report_of(core.record, error_kind::foreign_thread);
    r.other_thread = before;
    r.other = core.last_use;
    raise_from(core, r);
    return false;
}

void report_bad_alignment(general_purpose_core& core, std::size_t bytes, std::size_t alignment) noexcept {
    report r = call_report(core.record, error_kind::bad_alignment, nullptr, bytes, alignment);
    raise_from(core, r);
}

void report_limit(general_purpose_core& core, std::size_t bytes, std::size_t alignment, std::size_t limit,
                  std::size_t in_use) noexcept {
    report r = call_report(core.record, error_kind::limit_exceeded, nullptr, bytes, alignment);
    r.limit = limit;
    r.in_use = in_use;
    raise_from(core, r);
}

void report_upstream(general_purpose_core& core, error_kind kind, void* p, std::size_t bytes,
                     std::size_t alignment) noexcept {
    report r = call_report(core.record, kind, p, bytes, alignment);
    const bool has_records = core.record_bytes != 0;
    if (unit* const u = has_records && p != nullptr ? unit_of(core, reinterpret_cast<std::uintptr_t>(p)) : nullptr;
        u != nullptr) {
        if (const slot_ref s = nearest_in(core, *u, reinterpret_cast<std::uintptr_t>(p)); s.owner != nullptr) {
            describe_block(core, s, r);
        }
    }
    raise_from(core, r);
}

namespace {

/// Effects: verifies memory of which no unit was made yet: zeroed pages, of which only those are looked at that are in
/// memory. Reports what was written, and puts it right. Returns: how many pieces were.
std::size_t verify_untouched(general_purpose_core& core, std::uintptr_t from, std::uintptr_t to) noexcept {
    auto* const start = reinterpret_cast<unsigned char*>(from);
    if (from >= to || os::resident(start, to - from) == 0) {
        return 0;
    }
    constexpr std::size_t piece = std::size_t{1} << 16;
    if (to - from > piece) {
        const std::uintptr_t middle = from + os::round_up((to - from) / 2, unit_page);
        return verify_untouched(core, from, middle) + verify_untouched(core, middle, to);
    }
    if (all_bytes(start, to - from, 0)) {
        return 0;
    }
    report r = stray_write(core, start, start + (to - from), 0);
    fill_memory(core, start, 0, to - from);  // pages of this resource's own: no other's block lies there
    raise_from(core, r);
    return 1;
}

std::size_t verify_untouched(general_purpose_core& core) noexcept {
    std::size_t damaged = 0;
    if (!core.over_pages || core.record_bytes == 0 || !fills(core)) {
        return damaged;
    }
    for (const chunk* c = core.chunks; c != nullptr; c = c->next) {
        damaged += verify_untouched(core, c->base + c->carved, c->base + c->size);
    }
    if (const slab* const s = core.open_slab; s != nullptr && !s->warm) {
        damaged += verify_untouched(core, s->base + s->carved, s->base + slab::size);
    }
    for (const slab* s = core.ready_slabs; s != nullptr; s = s->next) {
        damaged += s->warm ? 0 : verify_untouched(core, s->base, s->base + slab::size);
    }
    return damaged;
}

}  // namespace

std::size_t check_all(general_purpose_core& core) noexcept {
    std::size_t damaged = verify_untouched(core);
    const bool recycles = core.rules.freed == reuse::immediate;
    // No other thread uses the resource, and a handler must be free to: walk without the lock.
    for (unit* u = core.units; u != nullptr; u = u->following) {
        // In the child of a fork, what another thread was at stays undone.
        const bool at_work = u->unsettled.load(std::memory_order_acquire) || (u->in != nullptr && u->in->busy);
        const bool readable = !u->trapped() && !at_work;
        const std::uint32_t used = u->used();
        for (std::uint32_t i = 0; i < used && core.record_bytes != 0; ++i) {
            const slot_ref s{u, i};
            const slot_state state = s.record(core).state.load(std::memory_order_acquire);
            if (state == slot_state::live && core.guard_bytes != 0 && !surroundings_intact(core, s)) {
                report_surroundings(core, s);
                ++damaged;
            } else if (state == slot_state::freed && core.rules.fill && readable &&
                       (!recycles || u->large || u->waits(i)) && !verify_freed(core, s)) {
                ++damaged;
            }
        }
        damaged += readable ? verify_rest(core, *u) : 0;
    }
    return damaged;
}

std::size_t report_live(general_purpose_core& core) noexcept {
    leak_listing listing(core.record);
    {
        const std::scoped_lock hold(core.lock);
        for (unit* u = core.units; u != nullptr && core.record_bytes != 0; u = u->following) {
            const std::uint32_t used = u->used();
            for (std::uint32_t i = 0; i < used; ++i) {
                const slot_ref s{u, i};
                const slot_record& record = s.record(core);
                if (record.state.load(std::memory_order_acquire) == slot_state::live) {
                    const trace_id where =
                        has_traces(core) ? static_cast<const traced_record&>(record).allocated : trace_id::none;
                    listing.add(where, s.requested(core), s.block(core), serial_of(s));
                }
            }
        }
    }
    if (listing.blocks() == 0) {
        return 0;
    }
    report r = report_of(core.record, error_kind::leak);
    listing.fill(r);
    raise_from(core, r);
    return r.leaked_blocks;
}

void leave_remains(general_purpose_core& core, bool any_live) noexcept {
    metadata::leave_behind_filled(core.record, [&](metadata::remains& left) noexcept {
        const std::scoped_lock hold(core.lock);
        for (const chunk* c = core.chunks; c != nullptr; c = c->next) {
            left.add_range(c->base, c->size);
        }
        for (unit* u = core.units; any_live && u != nullptr && !left.full(); u = u->following) {
            const std::uint32_t used = u->used();
            for (std::uint32_t i = 0; i < used; ++i) {
                const slot_ref s{u, i};
                if (s.record(core).state.load(std::memory_order_acquire) == slot_state::live) {
                    report r;
                    describe_block(core, s, r);
                    left.add_block(r.block, r.allocated);
                }
            }
        }
    });
}

}  // namespace pmr_debug::detail
