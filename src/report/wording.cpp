#include "report/wording.hpp"

#include "report/copies.hpp"

namespace pmr_debug {

std::string_view to_string(error_kind kind) noexcept {
    switch (kind) {
        case error_kind::leak: return "leak";
        case error_kind::double_free: return "double_free";
        case error_kind::invalid_free: return "invalid_free";
        case error_kind::interior_free: return "interior_free";
        case error_kind::null_free: return "null_free";
        case error_kind::wrong_resource: return "wrong_resource";
        case error_kind::size_mismatch: return "size_mismatch";
        case error_kind::alignment_mismatch: return "alignment_mismatch";
        case error_kind::overrun: return "overrun";
        case error_kind::underrun: return "underrun";
        case error_kind::use_after_free: return "use_after_free";
        case error_kind::write_after_free: return "write_after_free";
        case error_kind::foreign_thread: return "foreign_thread";
        case error_kind::destroyed_resource: return "destroyed_resource";
        case error_kind::live_at_destruction: return "live_at_destruction";
        case error_kind::bad_alignment: return "bad_alignment";
        case error_kind::upstream_null: return "upstream_null";
        case error_kind::upstream_misaligned: return "upstream_misaligned";
        case error_kind::upstream_overlap: return "upstream_overlap";
        case error_kind::limit_exceeded: return "limit_exceeded";
        case error_kind::arena_overflow: return "arena_overflow";
        case error_kind::out_of_order_rewind: return "out_of_order_rewind";
        case error_kind::default_resource_used: return "default_resource_used";
        case error_kind::null_upstream: return "null_upstream";
        case error_kind::cycle: return "cycle";
        case error_kind::fault: return "fault";
    }
    return "unknown";
}

namespace detail {

namespace {

// `was read`
void write_access(writer& out, access_kind access) noexcept {
    switch (access) {
        case access_kind::read: out.text("was read"); return;
        case access_kind::write: out.text("was written"); return;
        case access_kind::execute: out.text("was executed"); return;
        case access_kind::unknown: break;
    }
    out.text("was accessed");
}

// A fault says where the access was, not what it changed.
void write_faulting_access(writer& out, const report& r) noexcept {
    out.put(' ');
    write_access(out, r.access);
    if (r.block.address != nullptr) {
        out.text(", ");
        write_position(out, r.pointer, r.block, "it");
    }
}

// `64-byte block 0x7f01`, or as much of it as is known.
void write_block(writer& out, const report& r) noexcept {
    if (r.block.address == nullptr || r.nearest_only) {
        out.address(r.pointer);
    } else {
        out.number(r.block.size).text("-byte block ").address(r.block.address);
    }
}

void write_request(writer& out, const report& r) noexcept {
    out.text("request of ").count(r.given_size, "byte").text(" with alignment ").number(r.given_alignment);
}

void write_damage(writer& out, const report& r) noexcept {
    if (r.first_bad != nullptr) {
        out.text(": ").count(r.bad_bytes, "byte").text(" changed, the first one ");
        if (r.block.address != nullptr) {
            write_position(out, r.first_bad, r.block, "it");
        } else {
            out.text("at ").address(r.first_bad);
        }
    }
}

void write_leak_totals(writer& out, const report& r) noexcept {
    out.bytes(r.leaked_bytes).text(" in ").count(r.leaked_blocks, "block");
    if (all_listed(r) && r.kind == error_kind::leak) {
        out.text(" of ");
        write_short_name(out, r.resource);
    }
}

// Such a report has no other line.
void write_if_all_listed(writer& out, const report& r) noexcept {
    if (all_listed(r)) {
        out.text(", listed by ");
        write_listed_by(out, r);
    }
}

}  // namespace

void write_short_name(writer& out, const resource_ref& r) noexcept {
    if (!r.name.empty()) {
        out.quoted(r.name);
        return;
    }
    out.text(r.type.empty() ? std::string_view("a resource") : r.type);
    if (r.id != 0 && !is_of_another_copy(r)) {
        out.text(" #").number(r.id);
    }
}

void write_position(writer& out, const void* p, const block_info& block, std::string_view noun) noexcept {
    if (is_below(p, block.address)) {
        out.count(distance(p, block.address), "byte").text(" before ").text(noun);
        return;
    }
    const std::uint64_t offset = distance(block.address, p);
    if (offset < block.size || offset == 0) {
        out.count(offset, "byte").text(" into ").text(noun);
    } else {
        out.count(offset - block.size, "byte").text(" past ");
        if (noun == "it") {
            out.text("its end");
        } else {
            out.text("the end of ").text(noun);
        }
    }
}

bool all_listed(const report& r) noexcept {
    return is_leak(r.kind) && r.leaked_blocks != 0 && r.listed_blocks == r.leaked_blocks;
}

void write_listed_by(writer& out, const report& r) noexcept {
    if (r.listed_by.id == 0) {
        out.text("resources above");
        return;
    }
    write_short_name(out, r.listed_by);
    if (r.listed_by_others) {
        out.text(" and others");
    }
    out.text(" above");
}

void write_headline(writer& out, const report& r) noexcept {
    out.text(to_string(r.kind)).text(": ");
    switch (r.kind) {
        case error_kind::leak:
            write_leak_totals(out, r);
            out.text(" were never freed");
            write_if_all_listed(out, r);
            break;
        case error_kind::double_free:
            write_block(out, r);
            out.text(" was freed twice");
            break;
        case error_kind::invalid_free:
            out.address(r.pointer).text(" is no block of any pmr_debug resource");
            if (was_once(r)) {
                out.text(" that lives; it was one of ").count(r.block.size, "byte").text(" of ");
                write_short_name(out, r.owner);
            }
            break;
        case error_kind::interior_free:
            out.address(r.pointer).text(" points ");
            if (r.block.address != nullptr) {
                write_position(out, r.pointer, r.block, "the ");
                out.number(r.block.size).text("-byte block ").address(r.block.address);
            } else {
                out.text("into a block");
            }
            out.text(", not at its start");
            break;
        case error_kind::null_free:
            out.text("a null pointer was deallocated");
            if (r.has_given) {
                out.text(" as ").count(r.given_size, "byte");
            }
            break;
        case error_kind::wrong_resource:
            if (r.block.address == nullptr && r.pointer == nullptr) {
                out.text("nodes of a container on ");
                write_short_name(out, r.owner);
                out.text(" were to go to one on ");
                write_short_name(out, r.resource);
                out.text(", so the standard library aborts");
                break;
            }
            write_block(out, r);
            out.text(" of ");
            write_short_name(out, r.owner);
            out.text(" was freed through ");
            write_short_name(out, r.resource);
            break;
        case error_kind::size_mismatch:
            out.text("block allocated with ").count(r.block.size, "byte");
            out.text(", deallocated with ").number(r.given_size);
            break;
        case error_kind::alignment_mismatch:
            out.text("block allocated with alignment ").number(r.block.alignment);
            out.text(", deallocated with ").number(r.given_alignment);
            break;
        case error_kind::overrun:
            if (hit_fresh_memory(r)) {
                out.text("memory that was never handed out was written to: ").count(r.bad_bytes, "byte");
                out.text(" changed, the first one ");
                if (r.nearest_only) {
                    write_position(out, r.first_bad, r.block, "the nearest block");
                } else {
                    out.text("at ").address(r.first_bad);
                }
                break;
            }
            write_block(out, r);
            if (r.faulted) {
                write_faulting_access(out, r);
                break;
            }
            out.text(" was written past its end");
            write_damage(out, r);
            break;
        case error_kind::underrun:
            write_block(out, r);
            if (r.faulted) {
                write_faulting_access(out, r);
                break;
            }
            out.text(" was written before its start");
            write_damage(out, r);
            break;
        case error_kind::use_after_free:
            out.text("freed ");
            write_block(out, r);
            if (r.faulted) {
                write_faulting_access(out, r);
                break;
            }
            out.text(" was accessed");
            if (r.pointer != nullptr && r.block.address != nullptr) {
                out.put(' ');
                write_position(out, r.pointer, r.block, "it");
            }
            break;
        case error_kind::write_after_free:
            out.text("freed ");
            write_block(out, r);
            out.text(" was written to");
            write_damage(out, r);
            break;
        case error_kind::foreign_thread:
            if (!r.owner.type.empty()) {
                out.text("two threads at once in the upstream of ");
                write_short_name(out, r.resource);
                out.text(", a ").text(r.owner.type).text(": thread ").number(r.thread);
                out.text(" came while thread ").number(r.other_thread).text(" was there");
                break;
            }
            write_short_name(out, r.resource);
            out.text(" belongs to thread ").number(r.other_thread).text(", but was used by thread ").number(r.thread);
            break;
        case error_kind::destroyed_resource: {
            if (!r.faulted && !r.fault_cause.empty()) {
                write_short_name(out, r.resource);
                out.text(" was ").text(r.fault_cause);
            } else if (r.pointer != nullptr && !r.faulted) {
                write_block(out, r);
                out.text(" was freed after the destruction of ");
                write_short_name(out, is_dead(r.owner) ? r.owner : r.resource);
            } else {
                write_short_name(out, r.resource);
                out.text(" was used after its destruction");
            }
            break;
        }
        case error_kind::live_at_destruction:
            write_leak_totals(out, r);
            out.text(" were in use when the memory of ");
            write_short_name(out, r.resource);
            out.text(" went away");
            write_if_all_listed(out, r);
            break;
        case error_kind::bad_alignment:
            if (r.pointer != nullptr) {
                out.text("buffer ").address(r.pointer).text(" is not aligned to ").number(r.given_alignment);
                break;
            }
            write_request(out, r);
            out.text(", which is no power of two");
            break;
        case error_kind::upstream_null:
            out.text("upstream returned null for a ");
            write_request(out, r);
            break;
        case error_kind::upstream_misaligned:
            out.text("upstream returned ").address(r.pointer).text(", which is not aligned, for a ");
            write_request(out, r);
            break;
        case error_kind::upstream_overlap:
            if (r.owner.id != 0) {
                out.text("buffer ").address(r.pointer).text(" of ").count(r.given_size, "byte");
                out.text(" is in use by ");
                write_short_name(out, r.owner);
                break;
            }
            out.text("upstream returned ").address(r.pointer).text(", which is in use, for a ");
            write_request(out, r);
            break;
        case error_kind::limit_exceeded:
            write_request(out, r);
            out.text(" exceeds the limit of ").number(r.limit).text(", ").number(r.in_use).text(" in use");
            break;
        case error_kind::arena_overflow:
            write_request(out, r);
            out.text(" does not fit the buffer of ").count(r.limit, "byte").text(", ");
            out.number(r.in_use).text(" in use");
            break;
        case error_kind::out_of_order_rewind:
            if (r.block.address != nullptr) {
                write_block(out, r);
                out.text(" was freed before a younger one");
            } else {
                out.text("a mark was rewound out of order");
            }
            break;
        case error_kind::default_resource_used:
            if (!r.has_given && r.pointer != nullptr) {
                out.text("the default resource was changed and not restored, it is ");
                if (r.owner.id != 0) {
                    write_short_name(out, r.owner);
                } else {
                    out.address(r.pointer);
                }
                break;
            }
            out.text("the default resource was used where it is forbidden");
            if (r.has_given) {
                out.text(": ");
                write_request(out, r);
            }
            break;
        case error_kind::null_upstream:
            write_short_name(out, r.resource);
            out.text(" was constructed with a null upstream");
            break;
        case error_kind::cycle:
            out.text("the upstream chain of ");
            write_short_name(out, r.resource);
            out.text(" leads back to itself");
            break;
        case error_kind::fault:
            // Of an address that cannot exist the processor does not say which it was, nor how it was accessed.
            if (r.pointer != nullptr || r.access != access_kind::unknown) {
                out.address(r.pointer).put(' ');
            } else {
                out.text("an unknown address ");
            }
            write_access(out, r.access);
            out.text(r.fault_cause.empty() ? "" : ": ").escaped(r.fault_cause);
            break;
    }
}

namespace {

std::string_view hint_of_outliving(const report& r) noexcept {
    const resource_ref& dead = is_dead(r.owner) ? r.owner : r.resource;
    if (dead.died_at_exit && r.phase != program_phase::exit) {
        return "a thread goes on after main: join it before main returns, or let it use a resource that is never "
               "destroyed";
    }
    if (dead.died_thread != 0 && dead.died_thread != r.thread) {
        return "another thread destroyed the resource, while this one still used it: join this thread before";
    }
    if (dead.died_at_exit) {
        return "static objects are destroyed in the reverse order of their construction: construct the resource "
               "before whoever uses it, or never destroy it";
    }
    return r.phase == program_phase::thread_end
               ? "a thread_local object outlived the resource, which must outlive all that allocates from it"
               : "the resource must outlive all that allocates from it";
}

}  // namespace

bool is_request(error_kind kind) noexcept {
    switch (kind) {
        case error_kind::bad_alignment:
        case error_kind::upstream_null:
        case error_kind::upstream_misaligned:
        case error_kind::upstream_overlap:
        case error_kind::limit_exceeded:
        case error_kind::arena_overflow:
        case error_kind::default_resource_used: return true;
        default: return false;
    }
}

std::string_view hint_of(const report& r) noexcept {
    if (!r.hint.empty()) {
        return r.hint;
    }
    switch (r.kind) {
        case error_kind::leak:
            if (r.phase == program_phase::exit && r.other_threads != 0) {
                return "what threads that still run own was not freed, either: join them before main returns, to see "
                       "what is left";
            }
            return "every allocate needs one deallocate; look for an owner that is never destroyed";
        case error_kind::double_free: return "two owners hold this pointer; one of them must give it up";
        case error_kind::invalid_free:
            return "it comes from malloc, new, the stack, or a resource that is not of this library";
        case error_kind::interior_free: return "deallocate needs the address that allocate returned";
        case error_kind::null_free:
            if (is_harmless(r)) {
                return "harmless here, but wrong by the standard: pmr deallocate, unlike free and delete, takes no "
                       "null pointer; test for it before the call";
            }
            return "pmr deallocate, unlike free and delete, takes no null pointer";
        case error_kind::wrong_resource:
            if (is_dead(r.owner)) {
                return "the resource that this block came from was destroyed before; who owned the block outlived it";
            }
            if (is_of_another_copy(r.owner)) {
                return "program and plug-in have a copy of pmr_debug each: who allocates must free, or link one shared "
                       "library";
            }
            return "a container was moved, swapped or assigned between resources, or two allocators were mixed up";
        case error_kind::size_mismatch:
            return "deallocate needs the size given to allocate; look for a delete through a base class, or a size "
                   "that "
                   "changed meanwhile";
        case error_kind::alignment_mismatch: return "deallocate needs the alignment given to allocate";
        case error_kind::overrun:
            return "an index or length is too large; look at what writes to the end of this block";
        case error_kind::underrun: return "an index is negative; look at what writes to the start of this block";
        case error_kind::use_after_free: return "a pointer or reference outlived the block";
        case error_kind::write_after_free: return "someone kept a pointer after the free and wrote through it";
        case error_kind::foreign_thread:
            return "give each thread its own resource, or use threading::synchronized; work that moves from thread to "
                   "thread calls rebind_thread() of the resource where the next one takes over";
        case error_kind::destroyed_resource: return hint_of_outliving(r);
        case error_kind::live_at_destruction:
            if (r.phase == program_phase::exit && r.other_threads != 0) {
                return "threads still run while static objects are destroyed, and may use these blocks: join them "
                       "before main returns";
            }
            return "the blocks' owners must be destroyed before their resource";
        case error_kind::bad_alignment:
            return r.pointer != nullptr ? "declare the buffer with alignas" : "alignments are 1, 2, 4, 8 …";
        case error_kind::upstream_null: return "a memory_resource must throw std::bad_alloc instead of returning null";
        case error_kind::upstream_misaligned: return "the upstream resource ignores the alignment it is asked for";
        case error_kind::upstream_overlap: return "the upstream resource handed out the same memory twice";
        case error_kind::limit_exceeded: return "raise the limit in the options, or look for what takes so much";
        case error_kind::arena_overflow: return "make the buffer larger, or give the resource an upstream";
        case error_kind::out_of_order_rewind: return "rewind marks in the opposite order of their making";
        case error_kind::default_resource_used: return "pass a resource to the container or object that allocates here";
        case error_kind::null_upstream: return "pass a resource that exists, such as std::pmr::new_delete_resource()";
        case error_kind::cycle: return "a resource was made the upstream of one of its own upstreams";
        case error_kind::fault: return "look at what the first frame reads or writes, and where its address comes from";
    }
    return {};
}

std::string_view to_string(access_kind access) noexcept {
    switch (access) {
        case access_kind::read: return "read";
        case access_kind::write: return "write";
        case access_kind::execute: return "execute";
        case access_kind::unknown: break;
    }
    return "unknown";
}

std::string_view to_string(program_phase phase) noexcept {
    switch (phase) {
        case program_phase::running: return "running";
        case program_phase::exit: return "exit";
        case program_phase::thread_end: return "thread_end";
    }
    return "running";
}

std::string_view to_string(block_state state) noexcept {
    switch (state) {
        case block_state::live: return "live";
        case block_state::freed: return "freed";
        case block_state::unknown: break;
    }
    return "unknown";
}

}  // namespace detail

}  // namespace pmr_debug
