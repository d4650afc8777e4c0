// Chunks, records, and the way back.

#include "metadata/arena.hpp"
#include "os/other_tools.hpp"
#include "os/virtual_memory.hpp"
#include "resources/chain_check.hpp"
#include "resources/temp_core.hpp"
#include "resources/upstream.hpp"

#include <algorithm>
#include <new>

namespace pmr_debug::detail {

namespace {

constexpr std::size_t first_record_bytes = 4096;
// What guards need beyond a buffer comes in pieces of at least this.
constexpr std::size_t least_pages = std::size_t{1} << 16;

temp_chunk* new_chunk() noexcept {
    void* const place = metadata::process_arena()->allocate(sizeof(temp_chunk));
    return place != nullptr ? ::new (place) temp_chunk : nullptr;
}

void delete_chunk(temp_chunk* c) noexcept {
    metadata::process_arena()->free(c, sizeof(temp_chunk));
}

bool overlaps(const temp_chunk* list, std::uintptr_t begin, std::size_t size) noexcept {
    for (; list != nullptr; list = list->older) {
        if (begin < list->start() + list->bytes() && list->start() < begin + size) {
            return true;
        }
    }
    return false;
}

}  // namespace

temp_core* temp_core::make(std::pmr::memory_resource* upstream, void* buffer, std::size_t bytes, const temp_options& o,
                           const policy& p, const std::pmr::memory_resource* owner, temp_window* window,
                           trace_id born) {
    metadata::arena* const shared = metadata::process_arena();
    void* const place = shared != nullptr ? shared->allocate(sizeof(temp_core)) : nullptr;
    temp_chunk* const given = place != nullptr && buffer != nullptr && bytes != 0 ? new_chunk() : nullptr;
    if (place == nullptr || (given == nullptr && buffer != nullptr && bytes != 0)) {
        if (place != nullptr) {
            shared->free(place, sizeof(temp_core));
        }
        throw std::bad_alloc();
    }
    auto* const core = ::new (place) temp_core;
    core->own_upstream = upstream;
    core->shape = temp_shape_of(p);
    const bool watches = core->shape.checks && core->shape.threads == threading::synchronized;
    core->upstream = watches ? core->watch.over(upstream, core->errors) : upstream;
    core->window = core->shape.checks ? &core->own_window : window;
    core->alloc_frames = p.alloc_frames;
    core->free_frames = p.free_frames;
    core->guard = p.guard_bytes;
    core->fills = p.fill;
    core->watched = core->shape.checks && (os::under_valgrind() || os::under_asan());
    core->exact = p.exact_alignment;
    core->special = core->watched || core->exact;
    core->options = o;
    core->options.name = {};  // the registry has a copy
    core->next_chunk_bytes = core->first_chunk();
    core->errors.handler.store(o.handler, std::memory_order_relaxed);
    if (given != nullptr) {
        core->buffer = reinterpret_cast<std::uintptr_t>(buffer);
        core->buffer_bytes = bytes;
        core->claimed_bytes.store(bytes, std::memory_order_relaxed);
        given->begin = given->next = given->used = given->high = core->buffer;
        given->size = bytes;
        given->limit = core->buffer + bytes;
        core->chunk = given;
        *core->window = {.next = core->buffer, .end = core->buffer + bytes};
    }
    const auto owns = [](void* c, const void* address, metadata::owned_block* out) noexcept {
        auto& mine = *static_cast<temp_core*>(c);
        // Without locks only the thread that used the resource last may look.
        if (mine.shape.threads == threading::unchecked && !mine.thread.is_mine()) {
            return false;
        }
        const os::brief_hold<true> hold(mine.lock);
        const temp_record* const r = mine.find_held(reinterpret_cast<std::uintptr_t>(address));
        if (r == nullptr || r->state != temp_state::live) {
            return false;
        }
        *out = {.block = describe(*r), .allocated = r->allocated};
        return true;
    };
    core->self =
        metadata::register_resource(metadata::resource_kind::temp, "temp_resource", o.name, owner, upstream, core, born,
                                    core->shape.checks ? static_cast<metadata::owns_function>(owns) : nullptr,
                                    stats_by_address<temp_resource_base>);
    if (core->shape.checks) {
        metadata::set_describe_address(core->self, describe_address);
    }
    core->watch.belongs_to(core->self);
    metadata::set_unchecked(core->self, core->shape.threads == threading::unchecked);
    metadata::set_fork(core->self,
                       [](void* c, os::fork_locks& locks) noexcept { locks.take(static_cast<temp_core*>(c)->lock); });
    report_cycle(core->self, core->errors);
    return core;
}

void temp_core::end(trace_id died) noexcept {
    drain(0);
    metadata::unregister_resource(self, died);
    metadata::arena& shared = *metadata::process_arena();
    if (chunk != nullptr) {
        open_memory(chunk->start(), chunk->begin + chunk->size);
        delete_chunk(chunk);
    }
    if (records != nullptr) {
        shared.free(records, record_bytes);
    }
    if (past != nullptr) {
        shared.free(past, options.freed_records * sizeof(temp_record));
    }
    this->~temp_core();
    shared.free(this, sizeof(temp_core));
}

bool temp_core::grow_records_held() noexcept {
    metadata::arena& shared = *metadata::process_arena();
    const std::size_t bytes = record_bytes != 0 ? record_bytes * 2 : first_record_bytes;
    auto* const fresh = static_cast<temp_record*>(shared.allocate(bytes));
    if (fresh == nullptr) {
        return false;
    }
    std::uninitialized_copy_n(records, count, fresh);
    if (records != nullptr) {
        shared.free(records, record_bytes);
    }
    records = fresh;
    record_bytes = bytes;
    capacity = bytes / sizeof(temp_record);
    return true;
}

temp_chunk* temp_core::chunk_held(std::uintptr_t p) const noexcept {
    temp_chunk* c = chunk;
    while (c != nullptr && p - c->begin >= c->size) {
        c = c->older;
    }
    return c;
}

temp_record* temp_core::find_near_held(std::uintptr_t p) noexcept {
    std::size_t stop = count;
    for (const temp_chunk* c = chunk; c != nullptr; stop = c->first_record, c = c->older) {
        if (p >= c->begin && p < c->begin + c->size) {
            temp_record* const first = records + c->first_record;
            temp_record* const behind = std::upper_bound(
                first, records + stop, p, [](std::uintptr_t at, const temp_record& r) { return at < r.address; });
            return behind != first ? behind - 1 : nullptr;
        }
    }
    return nullptr;
}

temp_record* temp_core::find_held(std::uintptr_t p) noexcept {
    if (count != 0 && records[count - 1].address == p) {
        return records + count - 1;
    }
    temp_record* const r = find_near_held(p);
    return r != nullptr && r->address == p ? r : nullptr;
}

const temp_record* temp_core::find_past_held(std::uintptr_t p, bool exactly) const noexcept {
    const std::size_t size = options.freed_records;
    const std::size_t kept = past != nullptr ? std::min(past_next, size) : 0;
    for (std::size_t i = 1; i <= kept; ++i) {
        const temp_record& r = past[(past_next - i) % size];
        if (r.address == p || (!exactly && r.address < p && p - r.address < extent(r.size))) {
            return &r;
        }
    }
    return nullptr;
}

const temp_record* temp_core::last_past_held(std::uintptr_t from, std::uintptr_t to) const noexcept {
    const std::size_t kept = past != nullptr ? std::min(past_next, options.freed_records) : 0;
    const temp_record* last = nullptr;
    for (std::size_t i = 0; i < kept; ++i) {
        if (past[i].address - from < to - from && (last == nullptr || past[i].address > last->address)) {
            last = past + i;
        }
    }
    return last;
}

void temp_core::fill_ahead_held(std::uintptr_t end) noexcept {
    const std::uintptr_t stop = chunk->limit;
    const std::uintptr_t from = std::max(end, chunk->high);
    const std::uintptr_t to = end + std::min(temp_ahead, stop - end);
    if (fills && from < to) {
        bury_memory(from, to);
        chunk->high = to;
    }
}

void temp_core::grow(const temp_request& r, temp_source from) {
    if (!shape.checks && buffer_bytes != 0 && options.overflow == temp_overflow::refuse) {
        fail();
    }
    std::size_t bytes = 0;
    std::size_t alignment = std::max(r.alignment, alignof(std::max_align_t));
    // So much that the first block lies right behind it. Where that is a lot, it would be for alignment's sake only.
    constexpr std::size_t most_front = 4096;
    const std::size_t front =
        shape.fill && guard != 0 && alignment <= most_front ? os::round_up(std::min(guard, temp_front), alignment) : 0;
    const std::size_t least = front + r.room() + guard + (exact ? r.alignment : 0);
    void* p = nullptr;
    if (from == temp_source::pages) {
        bytes = os::round_up(std::max(least, least_pages), os::page_size());
        p = os::map(bytes, std::max(alignment, os::page_size()));
        if (p == nullptr) {
            fail();
        }
    } else {
        {
            const os::brief_hold<true> hold(lock);
            bytes = std::max(next_chunk_bytes, os::round_up(least, alignof(std::max_align_t)));
        }
        try {
            p = ask_upstream(*upstream, bytes, alignment);
        } catch (...) {
            // What waits in quarantine may be what is missing.
            if (!drain(0)) {
                const os::brief_hold<true> hold(lock);
                ++used.failed_allocations;
                throw;
            }
            return;  // the caller tries again
        }
        if (p == nullptr || (reinterpret_cast<std::uintptr_t>(p) & (alignment - 1)) != 0) {
            if (shape.checks) {
                tell_request(p == nullptr ? error_kind::upstream_null : error_kind::upstream_misaligned, p,
                             {.bytes = bytes, .alignment = alignment});
            }
            if (p != nullptr) {
                upstream->deallocate(p, bytes, alignment);
            }
            fail();
        }
    }
    temp_chunk* const c = new_chunk();
    const auto start = reinterpret_cast<std::uintptr_t>(p);
    const std::uintptr_t begin = start + front;
    bool taken = false;
    if (c != nullptr) {
        const os::brief_hold<true> hold(lock);
        taken = overlaps(chunk, start, bytes) || overlaps(waiting, start, bytes);
        if (!taken) {
            if (chunk != nullptr) {
                chunk->next = window->next;
            }
            *c = {.begin = begin,
                  .size = bytes - front,
                  .front = front,
                  .canary = std::min(front, temp_front),
                  .alignment = alignment,
                  .next = begin,
                  .used = begin,
                  .high = begin,
                  .limit = start + bytes,
                  .first_record = count,
                  .older = chunk,
                  .from = from};
            chunk = c;
            fill_bytes(begin - c->canary, c->canary, temp_guard);
            close_memory(start, start + bytes);
            *window = {.next = begin, .end = start + bytes};
            fill_ahead_held(begin);
            if (from == temp_source::pages) {
                os::add_leak_root(p, bytes);
                page_bytes += bytes;
            } else {
                held_bytes += bytes;
                next_chunk_bytes = bytes <= SIZE_MAX / 8 ? bytes * 2 : bytes;
            }
            return;
        }
    }
    if (c != nullptr) {
        delete_chunk(c);
    }
    if (taken) {
        // It belongs to the chunk that is there: giving it back would free that.
        if (shape.checks) {
            tell_request(error_kind::upstream_overlap, p, {.bytes = bytes, .alignment = alignment});
        }
    } else if (from == temp_source::pages) {
        os::unmap(p, bytes);
    } else {
        upstream->deallocate(p, bytes, alignment);
    }
    fail();
}

void temp_core::mark_free_held(temp_record& r, trace_id here, std::uint32_t me) noexcept {
    r.state = temp_state::freed;
    r.freed = here;
    r.free_thread = me;
    --used.live_blocks;
    used.live_bytes -= r.size;
    ++used.total_deallocations;
    dead_bytes += r.size;
    if (fills && !r.covered) {
        fill_bytes(r.address, extent(r.size), temp_dead);
    }
    while (newest_live != 0 && newest_live <= count && records[newest_live - 1].state != temp_state::live &&
           options.lifo) {
        --newest_live;
    }
}

temp_position temp_core::position_held() const noexcept {
    return {.chunk = chunk,
            .next = window->next,
            .records = count,
            .needed = needed,
            .next_chunk_bytes = next_chunk_bytes,
            .spilled = spilled};
}

temp_position temp_core::start_held() noexcept {
    temp_chunk* oldest = chunk;
    while (oldest != nullptr && oldest->older != nullptr) {
        oldest = oldest->older;
    }
    if (oldest == nullptr || oldest->from != temp_source::given) {
        return {.next_chunk_bytes = first_chunk()};
    }
    return {.chunk = oldest, .next = oldest->begin, .next_chunk_bytes = first_chunk()};
}

void temp_core::bury_held(std::size_t from, trace_id here, std::uint32_t me) noexcept {
    const std::size_t size = options.freed_records;
    if (past == nullptr && size != 0 && from < count) {
        past = static_cast<temp_record*>(metadata::process_arena()->allocate(size * sizeof(temp_record)));
    }
    const std::size_t kept_from = count - std::min(count, size);
    for (std::size_t i = from; i < count; ++i) {
        temp_record& r = records[i];
        if (r.state == temp_state::live) {
            --used.live_blocks;
            used.live_bytes -= r.size;
            r.freed = here;
            r.free_thread = me;
        } else {
            dead_bytes -= r.size;
            r.was_freed = true;
        }
        r.state = temp_state::gone;
        if (past != nullptr && i >= kept_from) {
            std::construct_at(past + past_next % size, r);
            ++past_next;
        }
    }
    count = std::min(count, from);
    newest_live = count;
    while (options.lifo && newest_live != 0 && records[newest_live - 1].state != temp_state::live) {
        --newest_live;
    }
}

void temp_core::unwind(const temp_position& to, trace_id here, std::uint32_t me, std::size_t ahead) noexcept {
    verify(to.records);
    verify_unused(ahead);
    temp_chunk* gone = nullptr;
    {
        const os::brief_hold<true> hold(lock);
        bury_held(to.records, here, me);
        while (chunk != nullptr && chunk != to.chunk) {
            temp_chunk* const c = chunk;
            c->next = window->next;
            chunk = c->older;
            *window = chunk != nullptr ? temp_window{.next = chunk->next, .end = chunk->limit} : temp_window{};
            c->older = gone;
            gone = c;
        }
        // With reuse of the last block the cursor may stand before the mark already.
        if (chunk != nullptr && to.next < window->next) {
            bury_memory(to.next, std::min(window->next, chunk->limit));
            chunk->used = std::max(chunk->used, window->next);
            chunk->high = std::min(std::max(chunk->high, window->next), chunk->limit);
            window->next = to.next;
        }
        needed = to.needed;
        spilled = to.spilled;
        // Chunks that are gone must not make the next one larger: a loop of marks would double it every time.
        next_chunk_bytes = to.next_chunk_bytes;
    }
    while (gone != nullptr) {
        temp_chunk* const c = gone;
        gone = c->older;
        retire(c);
    }
}

void temp_core::retire(temp_chunk* c) noexcept {
    if (fills) {
        verify_dead(*c, c->next, c->high);
        bury_memory(c->begin, std::min(c->next, c->limit));
        c->used = std::max(c->used, c->next);
        c->high = std::min(std::max(c->high, c->next), c->limit);
        c->next = c->begin;
    }
    if (!fills || options.quarantine_bytes == 0 || c->from == temp_source::pages) {
        give_back(c);
        return;
    }
    {
        const os::brief_hold<true> hold(lock);
        c->older = nullptr;
        (waiting != nullptr ? waiting_last->older : waiting) = c;
        waiting_last = c;
        waiting_bytes += c->bytes();
    }
    drain(options.quarantine_bytes);
}

bool temp_core::drain(std::size_t keep) noexcept {
    bool any = false;
    for (;;) {
        temp_chunk* c = nullptr;
        {
            const os::brief_hold<true> hold(lock);
            if (waiting != nullptr && waiting_bytes > keep) {
                c = waiting;
                waiting = c->older;
                waiting_bytes -= c->bytes();
            }
        }
        if (c == nullptr) {
            return any;
        }
        any = true;
        verify_dead(*c, c->begin, c->high);
        verify_front(*c);
        give_back(c);
    }
}

void temp_core::give_back(temp_chunk* c) noexcept {
    open_memory(c->start(), c->begin + c->size);
    if (c->from == temp_source::pages) {
        os::remove_leak_root(reinterpret_cast<void*>(c->start()), c->bytes());
        // If the system refuses, the pages stay mapped, and stay counted.
        const bool gone = os::unmap(reinterpret_cast<void*>(c->start()), c->bytes());
        const os::brief_hold<true> hold(lock);
        page_bytes -= gone ? c->bytes() : 0;
    } else {
        {
            const os::brief_hold<true> hold(lock);
            held_bytes -= c->bytes();
        }
        upstream->deallocate(reinterpret_cast<void*>(c->start()), c->bytes(), c->alignment);
    }
    delete_chunk(c);
}

}  // namespace pmr_debug::detail
