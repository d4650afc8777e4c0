// Everything a temp resource finds wrong, and what it says of it.

#include "metadata/arena.hpp"
#include "metadata/remains.hpp"
#include "os/other_tools.hpp"
#include "report/copies.hpp"
#include "report/writer.hpp"
#include "resources/block_reports.hpp"
#include "resources/leak_listing.hpp"
#include "resources/temp_core.hpp"
#include "stack/capture.hpp"

#include <algorithm>
#include <bit>
#include <new>

namespace pmr_debug::detail {

namespace {

// A block further away than this says nothing about a stray pointer.
constexpr std::size_t near_bytes = std::size_t{1} << 20;

report about(error_kind kind, const metadata::resource_record* self, const void* p) noexcept {
    report r = report_of(self, kind);
    r.pointer = p;
    return r;
}

report about(error_kind kind, const metadata::resource_record* self, const void* p,
             const temp_request& given) noexcept {
    return call_report(self, kind, p, given.bytes, given.alignment);
}

void add_block(report& r, const temp_record& known) noexcept {
    r.block = describe(known);
    r.allocated = known.allocated;
    r.freed = known.freed;
}

}  // namespace

block_info describe(const temp_record& r) noexcept {
    return {.address = reinterpret_cast<const void*>(r.address),
            .size = r.size,
            .alignment = r.alignment(),
            .serial = r.serial,
            .state = r.state == temp_state::live ? block_state::live : block_state::freed,
            .alloc_thread = r.alloc_thread,
            .free_thread = r.free_thread};
}

bool temp_core::describe_address(void* core, std::uintptr_t address, metadata::address_finding* out) noexcept {
    // The lists may change meanwhile, and even form circles.
    constexpr int longest_list = 1 << 16;
    const auto& mine = *static_cast<const temp_core*>(core);
    const auto look = [&](const temp_record& r) noexcept {
        if (address < r.address || address - r.address >= mine.extent(r.size)) {
            return false;
        }
        *out = metadata::find_in(address, describe(r), r.allocated, r.freed);
        return true;
    };
    bool held = false;
    for (const temp_chunk* list : {mine.chunk, mine.waiting}) {
        for (int left = longest_list; list != nullptr && left != 0 && !held; list = list->older, --left) {
            held = address - list->begin < list->size;
        }
    }
    for (std::size_t i = 0; held && i < mine.count; ++i) {
        if (look(mine.records[i])) {
            return true;
        }
    }
    const std::size_t size = mine.options.freed_records;
    const std::size_t kept = mine.past != nullptr ? std::min(mine.past_next, size) : 0;
    for (std::size_t i = 1; i <= kept; ++i) {
        if (look(mine.past[(mine.past_next - i) % size])) {
            out->gone_back = !held;
            return true;
        }
    }
    if (held) {
        out->is = metadata::address_finding::what::never_used;
    }
    return held;
}

// ---- Damage --------------------------------------------------------------------------------------------------------

PMR_DEBUG_UNSEEN_BY_ASAN bool temp_core::repair_held(const temp_chunk* c, std::uintptr_t from, std::uintptr_t to,
                                                     unsigned char value, temp_damage& out) const noexcept {
    out.bad_bytes = 0;
    out.expected = value;
    auto* const bytes = reinterpret_cast<unsigned char*>(from);
    for (std::size_t i = 0; i < to - from; ++i) {
        if (bytes[i] != value && out.bad_bytes++ == 0) {
            out.first_bad = from + i;
            out.bad_value = bytes[i];
        }
    }
    if (out.bad_bytes == 0) {
        return false;
    }
    metadata::own_memory mine{.block = out.block.address, .block_bytes = out.block.size};
    mine.from = c != nullptr ? c->start() : mine.block;
    mine.bytes = c != nullptr ? c->bytes() : mine.block_bytes;
    if (out.never_used) {
        mine.block_bytes = 0;  // it is only the one that is nearest
    }
    out.covering = covering_damage(out.first_bad, to, value, false, mine, self);
    for (std::size_t i = out.first_bad - from; i < to - from && out.covering.owner.id == 0; ++i) {
        bytes[i] = value;
    }
    return true;
}

void temp_core::cut_held(temp_chunk& c, std::uintptr_t from) noexcept {
    c.limit = std::min(c.limit, from);
    c.high = std::min(c.high, c.limit);
    if (&c == chunk) {
        window->end = std::min(window->end, c.limit);
    }
}

bool temp_core::spoilt_held(temp_record& r, temp_damage& out) noexcept {
    const std::uintptr_t end = r.address + extent(r.size);
    const bool live = r.state == temp_state::live;
    const std::uintptr_t from = live ? r.address + r.size : r.address;
    const unsigned char expected = live ? temp_guard : temp_dead;
    const bool kept = (live ? shape.fill : fills) && !r.covered;
    if (!kept || all_bytes(from, end - from, expected)) {
        return false;
    }
    out.kind = live ? error_kind::overrun : error_kind::write_after_free;
    out.block = r;
    temp_chunk* const c = chunk_held(r.address);
    if (!repair_held(c, from, end, expected, out)) {
        return false;
    }
    if (out.covering.owner.id != 0) {
        r.covered = true;
        if (c != nullptr) {
            cut_held(*c, out.first_bad);
        }
    }
    return true;
}

bool temp_core::front_spoilt_held(temp_chunk& c, temp_damage& out) noexcept {
    if (all_bytes(c.begin - c.canary, c.canary, temp_guard) ||
        !repair_held(&c, c.begin - c.canary, c.begin, temp_guard, out)) {
        return false;
    }
    out.kind = error_kind::underrun;
    if (out.covering.owner.id != 0) {
        c.canary = 0;
    }
    const auto within = [&c](const temp_record& r) noexcept { return r.address - c.begin < c.size; };
    if (c.first_record < count && within(records[c.first_record])) {
        out.block = records[c.first_record];
        return true;
    }
    const std::size_t kept = past != nullptr ? std::min(past_next, options.freed_records) : 0;
    for (std::size_t i = 0; i < kept; ++i) {
        const temp_record& r = past[i];
        if (within(r) && (out.block.address == 0 || r.address < out.block.address)) {
            out.block = r;
        }
    }
    return true;
}

void temp_core::verify_front(temp_chunk& c) noexcept {
    temp_damage bad;
    {
        const os::brief_hold<true> hold(lock);
        const os::unseen_by_valgrind hidden(watched);
        if (!front_spoilt_held(c, bad)) {
            return;
        }
    }
    tell(bad);
}

PMR_DEBUG_UNSEEN_BY_ASAN bool temp_core::stale_held(temp_chunk& c, std::uintptr_t from, std::uintptr_t to,
                                                    temp_damage& out) noexcept {
    while (from != to && *reinterpret_cast<const unsigned char*>(from) == temp_dead) {
        ++from;
    }
    if (from == to) {
        return false;
    }
    const std::uintptr_t unused = std::max(c.used, &c == chunk ? window->next : c.next);
    if (from >= unused) {
        out.kind = error_kind::overrun;
        out.never_used = true;
        if (const temp_record* const r = find_near_held(from); r != nullptr) {
            out.block = *r;
        } else if (const temp_record* const before = last_past_held(c.begin, from); before != nullptr) {
            out.block = *before;
        }
    } else {
        to = std::min(to, unused);  // what lies behind is told by itself
        out.kind = error_kind::use_after_free;
        if (const temp_record* const r = find_past_held(from, false); r != nullptr) {
            out.block = *r;
            out.kind = r->was_freed ? error_kind::write_after_free : error_kind::use_after_free;
            to = std::min(to, r->address + extent(r->size));
        }
    }
    if (!repair_held(&c, from, to, temp_dead, out)) {
        return false;
    }
    if (out.covering.owner.id != 0) {
        cut_held(c, out.first_bad);
    }
    return true;
}

void temp_core::skip_damaged(const temp_request& r) noexcept {
    temp_damage bad;
    {
        const os::brief_hold<true> hold(lock);
        const os::unseen_by_valgrind hidden(watched);
        const std::uintptr_t end = (exact ? place_of<true>(r) : place_of<false>(r)) + r.room() + guard;
        if (chunk == nullptr || window->next >= chunk->high) {
            return;  // another thread was faster
        }
        const std::uintptr_t stop = std::min(end, chunk->high);
        if (!stale_held(*chunk, window->next, stop, bad)) {
            return;
        }
        window->next = stop;  // not used again
        chunk->used = std::max(chunk->used, stop);
    }
    tell(bad);
}

std::size_t temp_core::verify(std::size_t first_record) noexcept {
    std::size_t found = 0;
    for (std::size_t i = first_record; shape.fill;) {
        temp_damage bad;
        bool any = false;
        {
            const os::brief_hold<true> hold(lock);
            const os::unseen_by_valgrind hidden(watched);
            while (i < count && !any) {
                any = spoilt_held(records[i++], bad);
            }
        }
        if (!any) {
            break;
        }
        tell(bad);
        ++found;
    }
    return found;
}

std::size_t temp_core::verify_dead(temp_chunk& c, std::uintptr_t from, std::uintptr_t to) noexcept {
    std::size_t found = 0;
    const auto intact = [&]() noexcept {
        const os::unseen_by_valgrind hidden(watched);
        return all_bytes(from, to - from, temp_dead);
    };
    for (to = std::min(to, c.limit); fills && from < to && !intact(); to = std::min(to, c.limit)) {
        temp_damage bad;
        {
            const os::brief_hold<true> hold(lock);
            const os::unseen_by_valgrind hidden(watched);
            if (!stale_held(c, from, to, bad)) {
                break;
            }
        }
        tell(bad);
        ++found;
    }
    return found;
}

std::size_t temp_core::verify_unused(std::size_t ahead) noexcept {
    for (std::size_t found = 0;; ++found) {
        temp_damage bad;
        bool any = false;
        const auto look = [&](temp_chunk& c, std::uintptr_t from, std::uintptr_t to) noexcept {
            any = any || (fills && from < to && !all_bytes(from, to - from, temp_dead) && stale_held(c, from, to, bad));
        };
        {
            const os::brief_hold<true> hold(lock);
            const os::unseen_by_valgrind hidden(watched);
            const bool all = ahead == SIZE_MAX;
            for (temp_chunk* c = chunk; c != nullptr; c = all ? c->older : nullptr) {
                const std::uintptr_t next = c == chunk ? window->next : c->next;
                look(*c, next, all || next >= c->high ? c->high : next + std::min(ahead, c->high - next));
            }
            for (temp_chunk* c = all ? waiting : nullptr; c != nullptr; c = c->older) {
                look(*c, c->begin, c->high);
            }
            for (temp_chunk* c = chunk; c != nullptr && !any; c = c->older) {
                any = front_spoilt_held(*c, bad);
            }
        }
        if (!any) {
            return found;
        }
        tell(bad);
    }
}

void temp_core::tell(const temp_damage& d) noexcept {
    const auto* const first = reinterpret_cast<const void*>(d.first_bad);
    if (d.never_used) {
        report r = about(error_kind::overrun, self, first);
        if (d.block.address != 0) {
            add_block(r, d.block);
            r.nearest_only = true;
        }
        r.first_bad = first;
        r.bad_bytes = d.bad_bytes;
        r.bad_value = d.bad_value;
        r.expected_value = d.expected;
        r.hint =
            "these bytes of the arena were never handed out; whoever wrote there went past the end of a block, or used "
            "a pointer that leads nowhere";
        if (d.covering.owner.id != 0) {
            add_covering(r, d.covering.owner, d.covering.block);
        }
        raise(errors, r);
        return;
    }
    report r = about(d.kind, self, d.block.address != 0 ? reinterpret_cast<const void*>(d.block.address) : first);
    if (d.block.address != 0) {
        add_block(r, d.block);
    }
    if (d.kind == error_kind::use_after_free) {
        r.pointer = first;
        r.hint = "its memory went away with release() or a rewind; whoever wrote there kept a pointer";
    }
    r.first_bad = first;
    r.bad_bytes = d.bad_bytes;
    r.bad_value = d.bad_value;
    r.expected_value = d.expected;
    if (d.covering.owner.id != 0) {
        add_covering(r, d.covering.owner, d.covering.block);
    }
    raise(errors, r);
}

// ---- Requests ------------------------------------------------------------------------------------------------------

void temp_core::tell_request(error_kind kind, const void* p, const temp_request& request) noexcept {
    report r = about(kind, self, p, request);
    raise(errors, r);
}

void temp_core::refuse_request(const temp_request& r) {
    if (shape.checks && !std::has_single_bit(r.alignment)) {
        tell_request(error_kind::bad_alignment, nullptr, r);
    }
    fail();
}

void temp_core::fail() {
    {
        const os::brief_hold<true> hold(lock);
        ++used.failed_allocations;
    }
    throw std::bad_alloc();
}

void temp_core::overflow(const temp_request& request) {
    const bool refuse = options.overflow == temp_overflow::refuse;
    std::size_t in_use = 0;
    std::size_t total = 0;
    {
        const os::brief_hold<true> hold(lock);
        if (spilled) {
            return;  // another thread was faster
        }
        in_use = needed;
        total = align_up(buffer + needed, request.alignment) - buffer + request.room();
        spilled = !refuse;
        ++overflows;
        most_needed = std::max(most_needed, total);
    }
    if (options.overflow != temp_overflow::silent) {
        fixed_text<160> hint;
        {
            writer out(fixed_text<160>::sink, &hint);
            out.text("a buffer of ").count(total, "byte").text(" would have held this request and all before it; ");
            out.text("advice() tells what all of them take");
        }
        report r = about(error_kind::arena_overflow, self, nullptr, request);
        r.limit = buffer_bytes;
        r.in_use = in_use;
        r.hint = hint.view();
        raise(errors, r);
    }
    if (refuse) {
        fail();
    }
}

// ---- Frees ---------------------------------------------------------------------------------------------------------

void temp_core::deallocate_oddly(void* p, const temp_request& given) noexcept {
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    temp_record known;
    temp_record former;
    temp_damage bad;
    bool spoilt = false;
    bool out_of_order = false;
    bool odd = false;
    {
        const os::brief_hold<true> hold(lock);
        const temp_record* const r = p != nullptr ? find_held(at) : nullptr;
        odd = r != nullptr && r->state == temp_state::live &&
              (r->size != given.bytes || r->alignment() != given.alignment);
    }
    metadata::owned_block theirs;
    if (const resource_ref owner = odd ? other_owner(p, given.bytes, given.alignment, self, theirs) : resource_ref{};
        owner.id != 0) {
        report r = about(error_kind::wrong_resource, self, p, given);
        r.owner = owner;
        r.block = theirs.block;
        r.allocated = theirs.allocated;
        raise(errors, r);
        return;
    }
    {
        const os::brief_hold<true> hold(lock);
        temp_record* const r = p != nullptr ? find_held(at) : nullptr;
        if (r != nullptr) {
            known = *r;
            const temp_record* const old = odd ? find_past_held(at, true) : nullptr;
            former = old != nullptr && old->size == given.bytes ? *old : temp_record{};
            if (r->state == temp_state::live) {
                const os::unseen_by_valgrind hidden(watched);
                const std::uintptr_t end = r->address + extent(r->size);
                if (watched) {
                    os::unpoison(reinterpret_cast<const void*>(r->address), end - r->address);
                }
                out_of_order = options.lifo && newest_live != static_cast<std::size_t>(r - records) + 1;
                spoilt = spoilt_held(*r, bad);
                mark_free_held(*r, given.here, given.thread);
                close_memory(r->address, end);
            }
        }
    }
    if (known.address == 0 || known.state != temp_state::live) {
        bad_pointer(p, given);
        return;
    }
    const auto mismatch = [&](error_kind kind) noexcept {
        report r = about(kind, self, p, given);
        add_block(r, known);
        if (former.address != 0 && kind == error_kind::size_mismatch) {
            r.freed = former.freed;
            r.hint = hint_second_free_or_mismatch;
        }
        raise(errors, r);
    };
    if (known.size != given.bytes) {
        mismatch(error_kind::size_mismatch);
    }
    if (known.alignment() != given.alignment) {
        mismatch(error_kind::alignment_mismatch);
    }
    if (out_of_order) {
        report r = about(error_kind::out_of_order_rewind, self, p, given);
        add_block(r, known);
        r.hint = "free blocks in the opposite order of their allocation, or leave the option `lifo` off";
        raise(errors, r);
    }
    if (spoilt) {
        tell(bad);
    }
}

void temp_core::bad_pointer(void* p, const temp_request& given) noexcept {
    report r = about(error_kind::invalid_free, self, p, given);
    if (p == nullptr) {
        r.kind = error_kind::null_free;
        raise(errors, r);
        return;
    }
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    temp_record close;
    bool held = false;
    bool past_block = false;
    {
        const os::brief_hold<true> hold(lock);
        if (const temp_record* const near = find_near_held(at); near != nullptr) {
            close = *near;
            held = at - near->address < std::max(near->size, std::size_t{1});
        }
        if (!held || close.address != at) {
            if (const temp_record* const old = find_past_held(at, true); old != nullptr) {
                close = *old;
                past_block = true;
            }
        }
    }
    const bool freed_here = held && close.address == at;
    // Another owner comes first: the address may have been ours once and be theirs now. But that an upstream owns the
    // address of a block of ours is no wonder.
    metadata::owned_block theirs;
    const bool inside = held && !freed_here && !past_block;
    const metadata::below ask = inside                     ? metadata::below::stop
                                : freed_here || past_block ? metadata::below::skip
                                                           : metadata::below::ask;
    if (const resource_ref owner = find_owner_anywhere(p, self, ask, &theirs); owner.id != 0) {
        r.kind = error_kind::wrong_resource;
        r.owner = owner;
        r.block = theirs.block;
        r.allocated = theirs.allocated;
        if (freed_here || past_block) {
            r.freed = close.freed;
            r.hint = hint_second_free_or_wrong;
        }
    } else if (freed_here) {
        r.kind = error_kind::double_free;
        add_block(r, close);
    } else if (past_block) {
        add_block(r, close);
        r.hint = "its memory went away with release() or a rewind before it was freed";
    } else if (inside) {
        r.kind = error_kind::interior_free;
        add_block(r, close);
    } else if (add_former_owner(r, close.address != 0 ? reinterpret_cast<const void*>(close.address) : nullptr)) {
        // Says more than a neighbour.
    } else if (close.address != 0 && at - close.address < near_bytes) {
        add_block(r, close);
        r.nearest_only = true;
    }
    raise(errors, r);
}

// ---- The arena itself ----------------------------------------------------------------------------------------------

std::size_t temp_core::tell_live(std::size_t first_record, std::string_view hint, error_kind kind) noexcept {
    leak_listing listing(self);
    {
        const os::brief_hold<true> hold(lock);
        for (std::size_t i = first_record; i < count; ++i) {
            const temp_record& r = records[i];
            if (r.state == temp_state::live) {
                listing.add(r.allocated, r.size, reinterpret_cast<const void*>(r.address), r.serial);
            }
        }
    }
    if (listing.blocks() == 0) {
        return 0;
    }
    report r = about(kind, self, nullptr);
    listing.fill(r);
    r.hint = hint;
    raise(errors, r);
    return r.leaked_blocks;
}

void temp_core::leave_remains() noexcept {
    metadata::leave_behind_filled(self, [&](metadata::remains& left) noexcept {
        const os::brief_hold<true> hold(lock);
        for (const temp_chunk* c = chunk; c != nullptr; c = c->older) {
            left.add_range(c->start(), c->bytes());
        }
        for (std::size_t i = 0; i < count && !left.full(); ++i) {
            if (records[i].state == temp_state::live) {
                left.add_block(describe(records[i]), records[i].allocated);
            }
        }
    });
}

void temp_core::tell_mark(const temp_mark& m, std::string_view hint) noexcept {
    report r = about(error_kind::out_of_order_rewind, self, nullptr);
    if (m.core_ != nullptr && m.core_ != this) {
        r.owner = metadata::describe(m.core_->self);
    }
    r.allocated = m.taken_;
    r.hint = hint;
    raise(errors, r);
}

void temp_core::tell_shared_buffer() noexcept {
    struct search {
        temp_core* self;
        resource_ref found;
    } s{this, {}};
    metadata::for_each_living_resource(
        [](metadata::resource_record& r, void* context) noexcept {
            auto& want = *static_cast<search*>(context);
            if (r.kind != metadata::resource_kind::temp || r.core == want.self) {
                return true;
            }
            auto& other = *static_cast<temp_core*>(r.core);
            const std::size_t bytes = other.claimed_bytes.load(std::memory_order_relaxed);
            const std::uintptr_t from = want.self->buffer;
            const std::uintptr_t to = from + want.self->buffer_bytes;
            if (!other.shape.checks || from >= other.buffer + bytes || to <= other.buffer ||
                (other.shape.threads == threading::unchecked && !other.thread.is_mine())) {
                return true;
            }
            const os::brief_hold<true> hold(other.lock);
            const temp_record* const block = other.find_near_held(from);
            if (block != nullptr && block->state == temp_state::live && to <= block->address + block->size) {
                return true;  // an arena on a block of another one
            }
            want.found = metadata::describe(&r);
            return false;
        },
        &s);
    if (s.found.id == 0) {
        return;
    }
    report r = about(error_kind::upstream_overlap, self, reinterpret_cast<const void*>(buffer),
                     {.bytes = buffer_bytes, .alignment = options.buffer_alignment});
    r.owner = s.found;
    r.hint = "give each arena a buffer of its own; this one goes on without";
    claimed_bytes.store(0, std::memory_order_relaxed);
    {
        const os::brief_hold<true> hold(lock);
        metadata::process_arena()->free(chunk, sizeof(temp_chunk));
        chunk = nullptr;
        *window = {};
        buffer_bytes = 0;
    }
    raise(errors, r);
}

std::uint32_t temp_core::enter(trace_id here) noexcept {
    if (shape.checks) {
        thread.enter(shape.threads, here, errors, self);
    }
    return os::this_thread().number;
}

}  // namespace pmr_debug::detail
