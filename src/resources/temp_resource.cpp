#include <pmr_debug/temp_resource.hpp>

#include "os/virtual_memory.hpp"
#include "report/comparison.hpp"
#include "report/writer.hpp"
#include "resources/block_reports.hpp"
#include "resources/temp_core.hpp"
#include "resources/upstream.hpp"
#include "stack/capture.hpp"

#include <algorithm>
#include <new>

namespace pmr_debug {

namespace {

constexpr const char* type_name = "temp_resource";

}  // namespace

temp_resource_base::temp_resource_base(std::pmr::memory_resource* upstream, void* buffer, std::size_t bytes,
                                       const temp_options& o, const policy& p) {
    const trace_id born = stack::capture_from_caller(detail::temp_rare_frames);
    if (upstream == nullptr) {
        detail::null_upstream(type_name, o.name, born);
    }
    core_ = detail::temp_core::make(upstream, buffer, bytes, o, p, this, &window_, born);
    if (core_->shape.checks && core_->buffer_bytes != 0) {
        if ((core_->buffer & (o.buffer_alignment - 1)) != 0) {
            core_->tell_request(error_kind::bad_alignment, buffer, {.bytes = bytes, .alignment = o.buffer_alignment});
        }
        core_->tell_shared_buffer();
        core_->close_memory(core_->buffer, core_->buffer + core_->buffer_bytes);  // it may be another's no more
        if (core_->chunk != nullptr) {
            core_->fill_ahead_held(core_->buffer);
        }
    }
}

temp_resource_base::~temp_resource_base() {
    const trace_id died = stack::capture_from_caller(detail::temp_rare_frames);
    core_->void_marks(true);
    if (core_->shape.checks) {
        core_->tell_live(0, {});
        core_->leave_remains();
    }
    detail::temp_position start;
    {
        const os::brief_hold<true> hold(core_->lock);
        start = core_->start_held();
    }
    core_->unwind(start, died, os::this_thread().number, SIZE_MAX);
    core_->verify_unused(SIZE_MAX);
    detail::take_core(core_, this)->end(died);
}

void* temp_resource_base::do_allocate(std::size_t bytes, std::size_t alignment) {
    detail::report_destroyed(this, type_name, nullptr, bytes, alignment);
    throw std::bad_alloc();
}

void temp_resource_base::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    detail::report_destroyed(this, type_name, p, bytes, alignment);
}

bool temp_resource_base::do_is_equal(const std::pmr::memory_resource& other) const noexcept {
    return detail::is_same(this, other);
}

void temp_resource_base::release() noexcept {
    const trace_id here = stack::capture_from_caller(core_->free_frames);
    const std::uint32_t me = core_->enter(here);
    core_->void_marks(false);
    if (core_->shape.checks && core_->options.audit_winked_out) {
        core_->tell_live(0, "released while in use: what they own elsewhere is lost");
    }
    detail::temp_position start;
    {
        const os::brief_hold<true> hold(core_->lock);
        start = core_->start_held();
    }
    core_->unwind(start, here, me, SIZE_MAX);
}

std::size_t temp_resource_base::check() noexcept {
    return core_->verify(0) + core_->verify_unused(SIZE_MAX);
}

std::size_t temp_resource_base::report_leaks() noexcept {
    return core_->shape.checks ? core_->tell_live(0, {}, error_kind::leak) : 0;
}

std::pmr::memory_resource* temp_resource_base::upstream_resource() const noexcept {
    return core_->own_upstream;
}

std::string_view temp_resource_base::name() const noexcept {
    return metadata::describe(core_->self).name;
}

error_counts temp_resource_base::errors() const noexcept {
    return detail::snapshot(core_->errors);
}

bool temp_resource_base::ok() const noexcept {
    return detail::ok(core_->errors);
}

statistics temp_resource_base::stats() const noexcept {
    if (core_ == nullptr) {
        return {};
    }
    const os::look seen(core_->lock);
    statistics s = core_->used;
    s.upstream_bytes = core_->held_bytes;
    s.resident_bytes = core_->held_bytes;
    s.overhead_bytes = sizeof(detail::temp_core) + core_->record_bytes + core_->page_bytes +
                       (core_->past != nullptr ? core_->options.freed_records * sizeof(detail::temp_record) : 0);
    return s;
}

temp_advice temp_resource_base::advice() const noexcept {
    const os::look seen(core_->lock);
    temp_advice a;
    a.buffer_bytes = core_->buffer_bytes;
    a.needed_bytes = core_->needed;
    a.most_needed = core_->most_needed;
    a.live_bytes = core_->used.live_bytes;
    a.dead_bytes = core_->dead_bytes;
    if (const std::size_t all = a.live_bytes + a.dead_bytes; all != 0) {
        a.dead_ratio = static_cast<double>(a.dead_bytes) / static_cast<double>(all);
    }
    a.suggested_bytes = os::round_up(a.most_needed, 64);
    a.overflows = core_->overflows;
    return a;
}

void temp_resource_base::write_advice(text_sink sink, void* context) const noexcept {
    const temp_advice a = advice();
    detail::writer out(sink, context);
    const std::string_view given = name();
    out.text(given.empty() ? std::string_view(type_name) : given).text(": ");
    if (a.buffer_bytes != 0) {
        out.text("buffer of ").count(a.buffer_bytes, "byte");
        out.text(a.overflows != 0 ? ", overflowed " : ", did not overflow");
        if (a.overflows != 0) {
            out.count(a.overflows, "time");
        }
        out.text("; ");
    }
    out.text("most needed ").count(a.most_needed, "byte").text("; ");
    out.number(static_cast<std::uint64_t>(a.dead_ratio * 100)).text(" % of ");
    out.count(a.live_bytes + a.dead_bytes, "byte").text(" dead");
    if (a.dead_bytes > a.live_bytes) {
        out.text(": rewind or release more often, or use a resource that reuses memory");
    } else if (a.buffer_bytes != 0 && a.overflows != 0) {
        out.text(": give it ").count(a.suggested_bytes, "byte");
    }
    out.put('\n');
}

void temp_resource_base::rebind_thread() noexcept {
    core_->thread.release();
}

}  // namespace pmr_debug
