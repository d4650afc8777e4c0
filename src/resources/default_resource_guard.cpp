#include <pmr_debug/testing/default_resource_guard.hpp>

#include "metadata/arena.hpp"
#include "metadata/registry.hpp"
#include "os/thread.hpp"
#include "report/dispatch.hpp"
#include "resources/upstream.hpp"
#include "stack/capture.hpp"

#include <atomic>
#include <new>

namespace pmr_debug::testing {

namespace {

constexpr unsigned frames_kept = 16;
constexpr const char* guard_type = "default_resource_guard";
constexpr const char* forbidden_type = "forbid_default_resource";

std::uint64_t id_of(const std::pmr::memory_resource* r) noexcept {
    return metadata::describe(metadata::find_resource(r)).id;
}

resource_ref living_or_dead(const std::pmr::memory_resource* r) noexcept {
    const metadata::resource_record* const alive = metadata::find_resource(r);
    return metadata::describe(alive != nullptr ? alive : metadata::find_dead_resource(r));
}

void raise_to(report_handler* handler, report& r) noexcept {
    // Guards come and go; nobody asks for their counts.
    pmr_debug::detail::error_tally tally;
    tally.handler.store(handler, std::memory_order_relaxed);
    pmr_debug::detail::raise(tally, r);
}

}  // namespace

default_resource_guard::default_resource_guard(gsl::not_null<std::pmr::memory_resource*> resource,
                                               report_handler* handler) noexcept
    : ours_(resource.get()),
      previous_(std::pmr::set_default_resource(ours_)),
      previous_id_(id_of(previous_)),
      handler_(handler),
      born_(stack::capture_from_caller(frames_kept)) {}

default_resource_guard::~default_resource_guard() {
    const bool previous_died = previous_id_ != 0 && id_of(previous_) != previous_id_;
    std::pmr::memory_resource* const found =
        std::pmr::set_default_resource(previous_died ? std::pmr::new_delete_resource() : previous_);
    if (found != ours_) {
        report r;
        r.kind = error_kind::default_resource_used;
        r.resource.type = guard_type;
        r.resource.address = ours_;
        r.resource.alive = true;
        r.resource.born = born_;
        r.pointer = found;
        r.owner = living_or_dead(found);
        r.hint = "who calls set_default_resource must restore it; a default_resource_guard does";
        raise_to(handler_, r);
    }
    if (previous_died) {
        report r;
        r.kind = error_kind::destroyed_resource;
        r.resource = living_or_dead(previous_);
        r.hint = "the previous default resource died before the guard that was to restore it";
        raise_to(handler_, r);
    }
}

namespace detail {

/// Sits in private pages, and is never destroyed.
class forbidden_default final : public std::pmr::memory_resource {
public:
    forbidden_default(std::pmr::memory_resource* before, on_default_use what, report_handler* handler) noexcept
        : before_(before), what_(what), handler_(handler) {}

    void enlist(trace_id born) noexcept {
        self_ = metadata::register_resource(metadata::resource_kind::other, forbidden_type, {},
                                            static_cast<std::pmr::memory_resource*>(this), before_, this, born);
    }
    void lift(trace_id died) noexcept {
        lifted_.store(true, std::memory_order_release);
        metadata::unregister_resource(self_, died);
    }

    [[nodiscard]] std::pmr::memory_resource* before() const noexcept { return before_; }
    [[nodiscard]] std::uint64_t uses() const noexcept { return uses_.load(std::memory_order_relaxed); }
    [[nodiscard]] trace_id first_use() const noexcept { return first_use_.load(std::memory_order_acquire); }

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (!lifted_.load(std::memory_order_acquire)) {
            note(stack::capture_from_caller(frames_kept), bytes, alignment);
        }
        return pmr_debug::detail::ask_upstream(*before_, bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        before_->deallocate(p, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        // Another forwarder is recognised by its answer.
        return this == &other || before_->is_equal(other) || other.is_equal(*before_);
    }

    void note(trace_id here, std::size_t bytes, std::size_t alignment) noexcept {
        if (uses_.fetch_add(1, std::memory_order_relaxed) == 0) {
            first_use_.store(here, std::memory_order_release);
        }
        if (what_ == on_default_use::count) {
            return;
        }
        report r;
        r.kind = error_kind::default_resource_used;
        r.resource = metadata::describe(self_);
        r.has_given = true;
        r.given_size = bytes;
        r.given_alignment = alignment;
        r.here = here;
        raise_to(handler_, r);
        if (what_ == on_default_use::abort) {
            os::abort_process();
        }
    }

    std::pmr::memory_resource* before_;
    on_default_use what_;
    report_handler* handler_;
    metadata::resource_record* self_ = nullptr;
    std::atomic<bool> lifted_{false};
    std::atomic<std::uint64_t> uses_{0};
    std::atomic<trace_id> first_use_{trace_id::none};
};

namespace {

// What the default resource is, behind all scopes that forbid it.
std::pmr::memory_resource* behind_all() noexcept {
    std::pmr::memory_resource* r = std::pmr::get_default_resource();
    const metadata::resource_record* const known = metadata::find_resource(r);
    if (known != nullptr && known->type == forbidden_type) {
        r = static_cast<forbidden_default*>(r)->before();
    }
    return r;
}

forbidden_default* make_forwarder(on_default_use what, report_handler* handler, trace_id born) {
    metadata::arena* const memory = metadata::process_arena();
    void* const place = memory != nullptr ? memory->allocate(sizeof(forbidden_default)) : nullptr;
    if (place == nullptr) {
        throw std::bad_alloc();
    }
    auto* const forwarder = ::new (place) forbidden_default(behind_all(), what, handler);
    forwarder->enlist(born);
    return forwarder;
}

}  // namespace

}  // namespace detail

forbid_default_resource::forbid_default_resource(on_default_use what, report_handler* handler)
    : forwarder_(detail::make_forwarder(what, handler, stack::capture_from_caller(frames_kept))),
      guard_(forwarder_, handler) {}

forbid_default_resource::~forbid_default_resource() {
    forwarder_->lift(stack::capture_from_caller(frames_kept));
}

std::uint64_t forbid_default_resource::uses() const noexcept {
    return forwarder_->uses();
}

trace_id forbid_default_resource::first_use() const noexcept {
    return forwarder_->first_use();
}

}  // namespace pmr_debug::testing
