#include <pmr_debug/immortal_proxy.hpp>

#include "metadata/block_table.hpp"
#include "os/thread.hpp"
#include "resources/block_reports.hpp"
#include "resources/pass_through.hpp"
#include "stack/capture.hpp"

#include <cstring>
#include <mutex>
#include <new>

namespace pmr_debug {

namespace {

constexpr const char* type_name = "immortal_proxy";
constexpr unsigned table_shards = 4;
constexpr std::size_t freed_kept = 256;

struct proxy_core : detail::pass_through_core {
    unsigned frames = 0;
    bool report_live = true;
    metadata::block_table blocks;

    // The target, if it is one of this library's: its record tells when it dies.
    std::atomic<const metadata::resource_record*> target_record{nullptr};
    std::atomic<std::uint64_t> target_id{0};

    std::atomic<bool> retired{false};
    os::spin_lock retiring;
    trace_id died = trace_id::none;

    // A record is used again when enough others have died since; the forwarder is called for ever.
    resource_ref life;
    char name[sizeof metadata::resource_record::name]{};

    [[nodiscard]] detail::block_reporter reports() noexcept {
        return {.errors = errors, .self = self, .blocks = blocks};
    }

    void aim_at(std::pmr::memory_resource* target) noexcept {
        const metadata::resource_record* const r = metadata::find_resource(target);
        target_id.store(r != nullptr ? r->id : 0, std::memory_order_relaxed);
        target_record.store(r, std::memory_order_relaxed);
        upstream.store(target, std::memory_order_release);
    }

    /// True if the target is known to be dead: only one of this library's is.
    [[nodiscard]] bool target_died() const noexcept {
        const metadata::resource_record* const r = target_record.load(std::memory_order_acquire);
        return r != nullptr &&
               (!r->alive.load(std::memory_order_acquire) || r->id != target_id.load(std::memory_order_relaxed));
    }

    [[nodiscard]] bool is_dead() noexcept {
        if (retired.load(std::memory_order_acquire)) {
            return true;
        }
        if (!target_died()) {
            return false;
        }
        const metadata::resource_record* const r = target_record.load(std::memory_order_relaxed);
        const bool recorded = r->id == target_id.load(std::memory_order_relaxed);
        retire(recorded ? r->died : trace_id::none, false);
        return true;
    }

    void retire(trace_id death, bool tell) noexcept {
        {
            const std::scoped_lock hold(retiring);
            if (retired.load(std::memory_order_relaxed)) {
                return;
            }
            life.died = death;
            life.alive = false;
            retired.store(true, std::memory_order_release);
        }
        if (tell && report_live) {
            reports().leaks(error_kind::live_at_destruction);
        }
        metadata::unregister_resource(self, death);
    }

    void report_dead(const void* p, std::size_t bytes, std::size_t alignment) noexcept {
        report r;
        r.kind = error_kind::destroyed_resource;
        r.resource = life;
        r.pointer = p;
        r.has_given = true;
        r.given_size = bytes;
        r.given_alignment = alignment;
        metadata::block_entry known;
        if (p != nullptr && blocks.find(p, known)) {
            r.block = metadata::describe(known);
            r.allocated = known.allocated;
            r.freed = known.freed;
        }
        raise(errors, r);
    }
};

}  // namespace

namespace detail {

/// Sits in private pages, and is never destroyed.
class proxy_resource final : public pass_through_base {
public:
    explicit proxy_resource(proxy_core* core) noexcept { core_ = core; }
    [[nodiscard]] proxy_core& core() const noexcept { return *static_cast<proxy_core*>(core_); }

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        proxy_core& c = core();
        const trace_id here = stack::capture_from_caller(c.frames);
        if (c.is_dead()) {
            c.usage.fail();
            c.report_dead(nullptr, bytes, alignment);
            throw std::bad_alloc();
        }
        c.check_request(bytes, alignment);
        void* const p = c.ask(bytes, alignment);
        const auto record = [&] {
            return c.blocks.insert<true>(p, bytes, alignment, here, os::this_thread().number,
                                         [&]() noexcept { return c.usage.add<true>(bytes); });
        };
        // Without a record only the trace of a late free is missing.
        if (record() == metadata::block_table::outcome::occupied) {
            // The target took its memory back as a whole, as arenas do, and hands it out again.
            metadata::block_entry old;
            static_cast<void>(c.blocks.erase(p, trace_id::none, 0, old));
            c.usage.remove_at_most(old.size);
            static_cast<void>(record());
        }
        return p;
    }

    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        proxy_core& c = core();
        if (c.is_dead()) {
            c.report_dead(p, bytes, alignment);
            return;
        }
        if (c.check_free(p, bytes, alignment)) {
            metadata::block_entry old;
            const trace_id here = stack::capture_from_caller(c.frames);
            static_cast<void>(c.blocks.erase(p, here, os::this_thread().number, old));
            c.give_back(p, bytes, alignment);
        }
    }
};

}  // namespace detail

immortal_proxy::immortal_proxy(detail::upstream_argument upstream, const proxy_options& o) : forwarder_(nullptr) {
    const trace_id born = stack::capture_from_caller(detail::pass_through_frames);
    std::pmr::memory_resource* const target = upstream.get();
    auto* const core = detail::pass_through_core::make<proxy_core>(target, type_name, o.name, o.handler, born);
    metadata::arena& memory = *metadata::process_arena();
    void* const place = memory.allocate(sizeof(detail::proxy_resource));
    if (place == nullptr || !core->blocks.open(memory, table_shards, freed_kept)) {
        if (place != nullptr) {
            memory.free(place, sizeof(detail::proxy_resource));
        }
        memory.free(core, sizeof(proxy_core));
        throw std::bad_alloc();
    }
    core->frames = o.frames;
    core->report_live = o.report_live;
    core->hold_own = [](detail::pass_through_core& c, os::fork_locks& locks) noexcept {
        auto& mine = static_cast<proxy_core&>(c);
        locks.take(mine.retiring);
        mine.blocks.hold(locks);
    };
    core->aim_at(target);
    auto* const forwarder = ::new (place) detail::proxy_resource(core);
    core->enlist(type_name, o.name, forwarder, born);
    core->life = metadata::describe(core->self);
    if (core->self != nullptr) {
        std::memcpy(core->name, core->self->name, sizeof core->name);
        core->life.name = core->name;
    } else {
        core->life.type = type_name;
        core->life.address = forwarder;
        core->life.born = born;
    }
    forwarder_ = forwarder;
}

immortal_proxy::~immortal_proxy() {
    if (forwarder_ != nullptr && !forwarder_->core().is_dead()) {
        forwarder_->core().retire(stack::capture_from_caller(detail::pass_through_frames), true);
    }
}

std::pmr::memory_resource* immortal_proxy::resource() const noexcept {
    return forwarder_;
}

void immortal_proxy::retire() noexcept {
    if (!forwarder_->core().is_dead()) {
        forwarder_->core().retire(stack::capture_from_caller(detail::pass_through_frames), true);
    }
}

bool immortal_proxy::retired() const noexcept {
    return forwarder_->core().is_dead();
}

bool immortal_proxy::retarget(std::pmr::memory_resource* target) noexcept {
    proxy_core& core = forwarder_->core();
    if (target == nullptr) {
        detail::null_upstream(type_name, core.life.name, trace_id::none);
    }
    if (core.is_dead()) {
        core.report_dead(nullptr, 0, 1);
        return false;
    }
    if (metadata::leads_to(target, forwarder_)) {
        report r;
        r.kind = error_kind::cycle;
        r.resource = metadata::describe(core.self);
        raise(core.errors, r);
        return false;
    }
    core.aim_at(target);
    metadata::change_upstream(core.self, target);
    return true;
}

std::size_t immortal_proxy::before_upstream_release() noexcept {
    proxy_core& core = forwarder_->core();
    core.blocks.erase_live(stack::capture_from_caller(core.frames));
    return forwarder_->before_upstream_release();
}

std::pmr::memory_resource* immortal_proxy::upstream_resource() const noexcept {
    return forwarder_->upstream_resource();
}

std::string_view immortal_proxy::name() const noexcept {
    return forwarder_->core().life.name;
}

statistics immortal_proxy::stats() const noexcept {
    return forwarder_->stats();
}

error_counts immortal_proxy::errors() const noexcept {
    return forwarder_->errors();
}

bool immortal_proxy::ok() const noexcept {
    return forwarder_->ok();
}

}  // namespace pmr_debug
