"""The contract: every name of SGLang 0.5.23 that we hook, subclass, override, call or read.

``sglang-marconi doctor --contract`` holds it against a release. A test holds it against our code:
what we import, derive from, override and look up on SGLang's objects is in here.

The table reads: ``# who of ours needs it: what goes wrong without it``, then the owner, then the
kind and the names, functions with parameters and defaults, classes with those of the constructor.
An entry without a name is about the owner itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

#: Where the names of the compiled tree core begin.
COMPILED = "sglang.srt.mem_cache.rust_tree_core.mem_cache"

_TABLE = """\
# plugins/marconi.py: no --marconi flag is read, checked or shown
sglang.srt.server_args.ServerArgs
    hook add_cli_args(parser)
    hook from_cli_args(cls, args)
    hook resolved_dict(self)
    hook check_server_args(self)
    call __setattr__(self, name, value)

# plugins/marconi.py: sglang.Engine takes no marconi_ keyword
sglang.srt.plugins.load_plugins
    hook ()
sglang.srt.entrypoints.engine.Engine
    read server_args_class

# plugins/marconi.py: the cache stays SGLang's own
sglang.srt.mem_cache.registry.create_unified_radix_cache
    hook (ctx, *, cache_class=None)
sglang.srt.mem_cache.registry.TreeCacheBuildContext
    read server_args, is_hybrid_ssm

# plugins/marconi.py: judicious admission cuts no prefill
sglang.srt.managers.schedule_policy.PrefillAdder
    hook _select_prefill_admission(self, req, *, total_tokens, host_hit_length,
        swa_host_hit_length, truncation_align_size, has_chunked_req=False)
    hook add_chunked_req(self, req)
    read tree_cache

# plugins/marconi.py: policy 3 does not know who waits
sglang.srt.managers.schedule_policy.SchedulePolicy
    hook calc_priority(self, waiting_queue, running_batch=None, processed_tokens=0)
    call waiting_queue_prefix_matched(self, waiting_queue)
    read tree_cache

# plugins/marconi.py: /server_info has no counters
sglang.srt.managers.scheduler_components.internal_state.SchedulerInternalStateController
    hook get_internal_state(self, recv_req)
    read scheduler
sglang.srt.managers.scheduler.Scheduler
    read tree_cache
sglang.srt.managers.io_struct.GetInternalStateReqOutput
    read internal_state

# plugins/marconi.py: nothing is hooked, or nobody knows whether it is
sglang.srt.plugins.hook_registry.HookRegistry
    read
    call register(cls, target, hook, hook_type=HookType.AFTER, *, source=None)
    read _hooks, _patched

# plugins/marconi.py: nothing is hooked
sglang.srt.plugins.hook_registry.HookType
    read
    read AFTER, AROUND

# plugins/marconi.py: MLX would not be refused
sglang.srt.environ.envs
    read
sglang.srt.environ.Envs
    read SGLANG_USE_MLX
sglang.srt.environ.EnvField
    call get(self)

# plugins/marconi.py: the model's costs are unknown before it loads
sglang.srt.arg_groups.model_override_base.model_config_of
    call (server_args)

# plugins/marconi.py: flags are checked as given, not as resolved
sglang.srt.arg_groups.overrides.resolving_view
    call (server_args)

# plugins/marconi.py: a model without recurrent state would not be refused
sglang.srt.configs.hybrid_arch.mambaish_config
    call (model_config)

# plugins/marconi.py: the model's costs are unknown
sglang.srt.configs.model_config.ModelConfig
    read hf_config, model_path

# plugins/marconi.py: what excludes Marconi would not be refused
sglang.srt.arg_groups.fields.memory.Memory
    read disable_radix_cache, enable_lmcache, enable_flexkv, radix_cache_backend,
        radix_eviction_policy, enable_unified_memory
sglang.srt.arg_groups.fields.schedule.Schedule
    read chunked_prefill_size
sglang.srt.arg_groups.fields.disagg.Disagg
    read disaggregation_mode
sglang.srt.arg_groups.fields.parallel.Parallel
    read pp_size, attn_cp_size, enable_dp_attention

# plugins/marconi_doctor.py: the doctor is silent or wrong about it
sglang.srt.arg_groups.fields.memory.Memory
    read enable_hierarchical_cache, enable_session_radix_cache
sglang.srt.arg_groups.fields.model.Model
    read kv_cache_dtype
sglang.srt.arg_groups.fields.parallel.Parallel
    read tp_size, dp_size

# plugins/marconi_doctor.py: the doctor knows no weight of KV, or of a convolution's state
sglang.srt.configs.model_config.ModelConfig
    read dtype
sglang.srt.configs.mamba_utils.Mamba2StateDType
    read conv

# plugins/marconi_doctor.py: the doctor reads no flags
sglang.srt.server_args.prepare_server_args
    call (argv)

# plugins/marconi_doctor.py: the doctor resolves no flags
sglang.srt.server_args.ServerArgs
    call resolve_once(self)

# mem_cache/mamba_radix/launch_facts.py: the doctor knows no weight of a state
sglang.srt.arg_groups.fields.exec_.ExecMamba
    read enable_int8_mamba_checkpoint, mamba_ssm_dtype
sglang.srt.configs.mamba_utils.mamba2_state_dtype
    call (config=None)
sglang.srt.configs.mamba_utils.Mamba2StateDType
    read temporal

# mem_cache/mamba_radix/launch_facts.py: nobody is told what a launch leaves on the table
sglang.srt.arg_groups.resolution_hooks.run_hook
    call (builtin, server_args)
sglang.srt.arg_groups.kv_cache_hook.handle_unified_memory_pool
    call (server_args)
sglang.srt.arg_groups.kv_cache_hook.handle_page_major_kv_layout
    call (server_args)
sglang.srt.arg_groups.overrides.resolved_view
    call (server_args)
sglang.srt.arg_groups.model_override_base.use_mla_backend
    call (server_args)
sglang.srt.platforms.current_platform
    read
sglang.srt.platforms.interface.reject_out_of_tree_path
    call (platform, *, subsystem)
sglang.srt.configs.model_config.ModelConfig
    read is_hybrid_swa, head_dim, v_head_dim
sglang.srt.arg_groups.fields.memory.Memory
    read hicache_ratio, hicache_size
sglang.srt.arg_groups.fields.exec_.ExecMamba
    read mamba_backend, linear_attn_backend, linear_attn_decode_backend,
        linear_attn_prefill_backend, linear_attn_verify_backend, enable_linear_replayssm,
        enable_linear_replayssm_spec
sglang.srt.arg_groups.fields.parallel.Parallel
    read enable_kv_cache_sharding
sglang.srt.arg_groups.fields.spec.Spec
    read speculative_algorithm

# mem_cache/mamba_radix_cache.py: there is no cache
sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache
    subclass
    override __init__(self, params)
    override evict(self, params)
    override evict_for_alloc(self, params, *, allocation_reclaim_satisfied=None)
    override dec_lock_ref(self, node_id, params, skip_swa=False)
    override match_prefix(self, params)
    override _match_tree(self, params)
    override checkpoint(self, req, *, up_to, **kwargs)
    override maybe_hand_to_session(self, req)
    override release_session(self, session_id)
    override on_release(self, req, *, checkpointed)
    override evict_host(self, num_tokens, component_type=BASE_COMPONENT_TYPE)
    read disable, tree_core, session
sglang.srt.mem_cache.cache_init_params.CacheInitParams
    read disable

# mem_cache/mamba_radix_cache.py: later turns of streaming sessions are not counted
sglang.srt.session.streaming_session.is_virtual_node
    call (node)
sglang.srt.session.streaming_session.StreamingSession
    call borrowed_slot(self, req)
sglang.srt.session.streaming_session.SessionSlot
    read publishes_prompt
sglang.srt.mem_cache.base_prefix_cache.MatchResult
    read device_prefix_len

# mem_cache/mamba_radix_cache.py: nothing that a request resumes at is a use
sglang.srt.mem_cache.base_prefix_cache.TreeLock
    read node

# mem_cache/mamba_radix/host_order.py: what the host forgets is in SGLang's order
sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache
    call inc_host_lock_ref(self, node_id)
    call dec_host_lock_ref(self, node_id, params)
sglang.srt.mem_cache.base_prefix_cache.IncLockRefResult
    call to_dec_params(self)

# mem_cache/mamba_radix_cache.py: states that another server could resume at reach no storage
sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache
    read enable_storage

# mem_cache/mamba_radix_cache.py: what sessions hold on the host is ordered by us
sglang.srt.mem_cache.cache_init_params.CacheInitParams
    read enable_session_radix_cache

# mem_cache/mamba_radix/client_hints.py: nobody can say what follows a request
sglang.srt.managers.schedule_batch.FINISH_ABORT
    read
sglang.srt.managers.schedule_batch.Req
    read finished_reason, last_node, sampling_params
sglang.srt.sampling.sampling_params.SamplingParams
    read custom_params

# mem_cache/mamba_radix/tuning.py: a session's turns are taken for requests that end
sglang.srt.session.session_controller.Session
    read session_id, streaming

# mem_cache/mamba_radix/probes.py: health checks count as requests
sglang.srt.managers.utils.is_health_check_generate_req
    call (recv_req)

# mem_cache/mamba_radix_cache.py: ranks are not checked against each other
sglang.srt.utils.rank_consensus_checker.rank_consensus
    call (func=None, *, same_params=None, same_results=None, **kwargs)

# mem_cache/mamba_radix_cache.py: no eviction can be asked for
sglang.srt.mem_cache.base_prefix_cache.EvictParams
    call (self, num_tokens=0, swa_num_tokens=0, mamba_num=0)
    read num_tokens, mamba_num

# mem_cache/mamba_radix_cache.py: lookups are neither explained nor uses
sglang.srt.mem_cache.base_prefix_cache.MatchPrefixParams
    read key, req
sglang.srt.mem_cache.base_prefix_cache.MatchResult
    read best_match_node, last_visited_node_id, full_kv_hit_length

# mem_cache/mamba_radix/setup.py: the cache cannot be made
sglang.srt.mem_cache.registry.TreeCacheBuildContext
    read params, model_config, enable_hierarchical_cache
sglang.srt.mem_cache.cache_init_params.CacheInitParams
    read enable_metrics, req_to_token_pool, token_to_kv_pool_allocator, pp_cache_group, pp_size

# mem_cache/mamba_radix/setup.py: lower tiers and who exports metrics are unknown
sglang.srt.runtime_context
    call get_memory()
    call get_observability()
    call get_parallel()
    call get_serving()

# mem_cache/mamba_radix/setup.py: a tier below the device goes unnoticed
sglang.srt.arg_groups.fields.memory.Memory
    read enable_unified_cache_external_linker, hicache_host_memory_mode

# mem_cache/mamba_radix/setup.py: metrics are exported by the wrong ranks
sglang.srt.arg_groups.fields.observability.Observability
    read enable_metrics_for_all_schedulers
sglang.srt.arg_groups.fields.parallel.Parallel
    read attn_tp_rank, attn_cp_rank, tp_rank, pp_rank, dp_rank

# mem_cache/mamba_radix/setup.py: metrics name no model
sglang.srt.arg_groups.fields.serving.Serving
    read served_model_name

# mem_cache/mamba_radix/setup.py: bytes of KV are unknown
sglang.srt.mem_cache.allocator.BaseTokenToKVPoolAllocator
    call get_kvcache(self)

# mem_cache/mamba_radix/core.py: the cache cannot be made
sglang.srt.mem_cache.cache_init_params.CacheInitParams
    read
    read tree_components, tree_core_backend, component_registry_override

# mem_cache/mamba_radix/core.py: a cap on states a path goes unnoticed
sglang.srt.runtime_context.get_exec
    call ()
sglang.srt.arg_groups.fields.exec_.ExecMamba
    read mamba_max_states_per_path

# mem_cache/mamba_radix/core.py: the tree reports nothing
sglang.srt.mem_cache.unified_cache.tree_core_registry
    call get_tree_core_factory(name)
    call register_tree_core_backend(name, factory)
    call select_tree_core_backend(params)

# mem_cache/mamba_radix/core.py: KV and states are not told apart
sglang.srt.mem_cache.unified_cache.component_type.ComponentType
    read
    read FULL, MAMBA

# mem_cache/mamba_radix/python_core/tree.py: the view has no nodes
sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeNode
    read
    read id, key, parent, children, component_data, evicted, backuped

# mem_cache/mamba_radix/python_core/tree.py: the view is wrong about states and locks
sglang.srt.mem_cache.unified_cache.components.base.ComponentData
    read value, host_value, lock_ref

# mem_cache/mamba_radix/python_core/tree.py: the Python tree core reports nothing
sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore
    subclass
    override __init__(self, params, components)
    override reset(self)
    override match_prefix(self, params)
    override begin_insert(self, params)
    override set_component_device_value(self, node_id, component_type, value)
    override _is_device_leaf(self, node)
    override _update_evictable_leaf_sets(self, node)
    override _remove_leaf_from_parent(self, node)
    override evict_device_next_node(self, component_type, tracker)
    override evict_device_leaf(self, node_id, is_write_back)
    override drop_subtree_no_host(self, node_id)
    override commit_hicache_transfers(self, node_id, phase, comp_xfers, *, cache_actions,
        insert_result=None, pool_storage_result=None)
    call node_by_id(self, node_id)
    read root_node, evictable_device_leaves, is_eagle, _node_arena

# mem_cache/mamba_radix/python_core/tree.py: device and host are not told apart
sglang.srt.mem_cache.unified_cache.components.base.EvictLayer
    read
    read DEVICE

# mem_cache/mamba_radix/python_core/tree.py: states report nothing
sglang.srt.mem_cache.unified_cache.components.mamba.MambaComponent
    subclass
    override commit_insert_component_data(self, node, is_new_leaf, params, result, cache_actions)
    override redistribute_on_node_split(self, new_parent, child)
    override evict_component(self, node, device_frees, host_frees, cache_actions,
        target=EvictLayer.DEVICE)
    override acquire_component_lock(self, node, result, lock_host=False)
    override release_component_lock(self, node, params, lock_host=False)
    override _evict_device_start(self, request_cnt)
    override _evict_device_next_node(self, tracker, device_frees, host_frees, cache_actions)
    override _evict_device_end(self)
    read component_type, _evict_device_cursor, _evict_device_request_cnt

# mem_cache/mamba_radix/python_core/tree.py: KV reports nothing
sglang.srt.mem_cache.unified_cache.components.full.FullComponent
    subclass
    override evict_component(self, node, device_frees, host_frees, cache_actions,
        target=EvictLayer.DEVICE)
    override acquire_component_lock(self, node, result, lock_host=False)
    override _evict_device_start(self, request_cnt)
    override _evict_device_next_node(self, tracker, device_frees, host_frees, cache_actions)
    override _evict_device_end(self)
    read cache, component_type, tree_core, _evict_device_request_cnt

# mem_cache/mamba_radix/python_core/key.py: the Python tree core takes no key
sglang.srt.mem_cache.radix_cache.RadixKey
    subclass
    override __init__(self, token_ids, extra_key=None, is_bigram=False, limit=None, cache_salt=None)
    override __len__(self)
    override __getitem__(self, idx)
    override __slots__
    override _raw_len(self)
    override match_at(self, other, offset, page_size=1)
    read token_ids, extra_key, cache_salt, limit, is_bigram

# mem_cache/mamba_radix/python_core/walk.py: no fallback to LRU
sglang.srt.mem_cache.evict_policy.EvictionStrategy
    call get_priority(self, node)
sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedLRUList
    call get_lru_no_lock(self)
    call get_prev_no_lock(self, node, check_id=True)
    call in_list(self, node)

# mem_cache/mamba_radix/python_core/walk.py: walks offer no victim
sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore
    read lru_lists, eviction_strategy, enable_session_radix_cache

# mem_cache/mamba_radix/python_core/walk.py: nothing is evicted from shared memory
sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache
    call _evict(self, params, available_size_targets=None, *, allocation_reclaim_satisfied=None)
    read components

# mem_cache/mamba_radix/python_core/walk.py: sessions' prefixes are not spared
sglang.srt.mem_cache.unified_cache.components.base.TreeComponent
    call session_ref(self, node)
    read tree_core

# mem_cache/mamba_radix/lru_leaves.py: KV leaves are sorted at every walk
sglang.srt.mem_cache.evict_policy.LRUStrategy
    read
sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeNode
    read last_access_time

# mem_cache/mamba_radix/rust_core/tree.py: the view misses inserts
sglang.srt.mem_cache.base_prefix_cache.InsertParams
    read key
sglang.srt.mem_cache.base_prefix_cache.InsertResult
    read last_device_node, rotation_tail_declined
sglang.srt.mem_cache.unified_cache.unified_tree_core_interface.InsertStepResult
    read actions, result

# mem_cache/mamba_radix/rust_core/tree.py: the view is wrong about locks
sglang.srt.mem_cache.base_prefix_cache.DecLockRefParams
    read skipped_lock_components

# mem_cache/mamba_radix/rust_core/tree.py: the view learns no node
sglang.srt.mem_cache.radix_cache.RadixKey
    call raw_token_ids(self)

# mem_cache/mamba_radix/rust_core/tree.py: the Rust core evicts no victim
sglang.srt.mem_cache.unified_cache.unified_tree_core_interface.EvictDeviceNextNodeResult
    call (self, device_frees=..., host_frees=..., tracker=..., cache_actions=..., node_id=None,
        made_progress=False, unbacked_tokens=0, mamba_backup_node_id=None, swa_backup_node_id=None,
        swa_backup_num_tokens=0)
    read device_frees, tracker, node_id, made_progress, mamba_backup_node_id
sglang.srt.mem_cache.rust_tree_core.mem_cache.RustUnifiedTreeCoreBinding
    call collect_path_info(self, end_node_ids)
    call evict_device_leaf(self, node_id)
    call evict_excess_path_states(self, tail_node_id)
    call get_component_device_value(self, node_id, component_type)
    call inc_lock_ref(self, node_id, skip_lock_components=...)
    call dec_lock_ref(self, node_id, params, skip_swa=False)
sglang.srt.mem_cache.rust_tree_core.mem_cache.EvictDeviceLeafResultBinding
    read new_device_frees, tracker, cache_actions

# mem_cache/mamba_radix/rust_core/tree.py: the Rust tree core reports nothing
sglang.srt.mem_cache.rust_tree_core.adapter.RustUnifiedTreeCore
    subclass
    override __init__(self, params)
    override _bindings
    override reset(self)
    override match_prefix(self, params)
    override begin_insert(self, params)
    override resume_insert(self)
    override _cache_actions_from_tagged(self, actions)
    override inc_lock_ref(self, node_id, skip_lock_components=())
    override dec_lock_ref(self, node_id, params, skip_swa=False)
    override inc_full_pin(self, node_id)
    override dec_full_pin(self, node_id)
    override evict_device_start(self, component_type, request_cnt)
    override evict_device_next_node(self, component_type, tracker)
    override evict_device_end(self, component_type)
    override evict_device_leaf(self, node_id, is_write_back)
    override set_hicache_enabled(self)
    override evict_excess_path_states(self, tail_node_id, device_frees, host_frees, cache_actions)
    call _cache_action_from_tagged(self, action)
    call full_evictable_size(self)
    call full_protected_size(self)
    call mamba_protected_size(self)
    read _binding

# mem_cache/mamba_radix/rust_core/tree.py: nothing is evicted from shared memory
sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache
    call update_eviction_metrics(self, num_evicted, start_time)
sglang.srt.mem_cache.rust_tree_core.adapter.RustUnifiedTreeCore
    read is_write_back

# mem_cache/mamba_radix/rust_core/hosted_tree.py: the view does not know what lies on the host
sglang.srt.mem_cache.rust_tree_core.adapter.RustUnifiedTreeCore
    override _fill_evict_result(self, binding_result, result)
    override commit_backup(self, node_id, host_indices, comp_xfers)
    override commit_load_back(self, node_id, device_indices, kv_xfer, comp_xfers)
    override insert_host(self, node_id, key, host_value, hash_value)
    override commit_hicache_transfers(self, node_id, phase, comp_xfers, *, cache_actions,
        insert_result=None, pool_storage_result=None)
    override finish_mamba_state_eviction(self, node_id)
    override demote(self, node_id)
    override drop_subtree_no_host(self, node_id)
    override drive_host_eviction(self, component_type, num_tokens)
    call build_backup_spec(self, node_id)
    call build_hicache_transfers(self, component_type, node_id, phase, *, host_indices=None,
        token_ids=None, prefetch_tokens=0, staging_tokens=0, last_hash=None)
sglang.srt.mem_cache.rust_tree_core.mem_cache.RustUnifiedTreeCoreBinding
    call is_full_device_evicted(self, node_id)
    call component_has_host_value_only(self, node_id, component_type)
    call node_backuped(self, node_id)
    call build_storage_backup_spec(self, node_id, pass_prefix_keys)
    call set_hicache_enabled(self)
sglang.srt.mem_cache.unified_cache.unified_tree_core_interface.EvictDeviceLeafResult
    read backup_kv
sglang.srt.mem_cache.unified_cache.unified_tree_core_interface.DropSubtreeNoHostResult
    read is_dropped
sglang.srt.mem_cache.base_prefix_cache.InsertResult
    read inserted_host_node
sglang.srt.mem_cache.hicache_storage.PoolTransfer
    read host_indices, nodes_to_load
sglang.srt.mem_cache.rust_tree_core.mem_cache.StorageBackupSpecBinding
    read host_value
sglang.srt.mem_cache.unified_cache.components.base.CacheTransferPhase
    read
    read LOAD_BACK

# mem_cache/mamba_radix/rust_core/tree.py: the Rust tree core cannot be made
sglang.srt.mem_cache.cache_init_params.CacheInitParams
    read page_size, eviction_policy
sglang.srt.mem_cache.rust_tree_core.extension.bindings
    read

# mem_cache/mamba_radix/rust_core/tree.py: no state can be singled out
sglang.srt.mem_cache.rust_tree_core.mem_cache.TreeCoreInitParamsBinding
    call (eviction_policy=..., page_size=1, is_write_back=False, enable_hicache=False,
        write_through_threshold=256, device=..., swa_sliding_window_size=None,
        enable_kv_cache_events=False, mamba_cache_chunk_size=None, mamba_max_states_per_path=None,
        slru_protected_threshold=2, swa_req_ring=False, tlru_tail_budget=0, tlru_float_config=None,
        dynamo_kv_event_format=False)
sglang.srt.mem_cache.rust_tree_core.mem_cache.DecLockRefParamsBinding
    call (node_id=None, skipped_lock_components=..., *, component_lock_uuids=None,
        component_host_lock_uuids=None)

# mem_cache/mamba_radix/shared_memory.py: one memory for states and KV is evicted by LRU
sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache
    call _component_available_size(self, component_type)
    read req_to_token_pool, token_to_kv_pool_allocator
sglang.srt.mem_cache.allocator.unified_mamba.UnifiedMambaTokenToKVPoolAllocator
    read
    call mamba_full_cache_donor(self)
    call flush_deferred_full_frees(self)
    call prepare_mamba_allocation(self, target_size)
sglang.srt.mem_cache.unified_memory_pool.UnifiedMambaSlotAllocator
    call available_size(self)

# mem_cache/mamba_radix/shared_memory.py: what was evicted cannot be told
sglang.srt.mem_cache.base_prefix_cache.EvictResult
    call (self, num_tokens_evicted=0, swa_num_tokens_evicted=0, mamba_num_evicted=0)
    read num_tokens_evicted, mamba_num_evicted

# mem_cache/mamba_radix/transfers.py: the scheduler ends while transfers hold all states
sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache
    call writing_check(self, write_back=False, finish_count=None)
    call loading_check(self, finish_count=None)
    read cache_controller, ongoing_write_through
sglang.srt.managers.cache_controller.HiCacheController
    read ack_load_queue

# mem_cache/mamba_radix/admission.py: judicious admission hears of no state
sglang.srt.mem_cache.unified_cache.components.mamba.MambaComponent
    override cleanup_after_caching_req(self, req, is_finished, insert_result=None,
        insert_params=None)
    read cache
sglang.srt.mem_cache.base_prefix_cache.InsertResult
    read mamba_exist

# mem_cache/mamba_radix/python_core/tree.py: judicious admission takes no state back
sglang.srt.mem_cache.unified_cache.components.base.ComponentData
    read session_ref
sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache
    call _apply_eviction_result(self, result)
sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore
    call _evict_component_and_detach_lru(self, node, comp, device_frees, host_frees, cache_actions,
        target=EvictLayer.DEVICE, tracker=None)
    call _cascade_evict(self, node, trigger, tracker, device_frees, host_frees, cache_actions,
        target=EvictLayer.DEVICE)
    read components_by_type
sglang.srt.mem_cache.unified_cache.unified_tree_core_interface.BaseEvictionResult
    call (self, device_frees=..., host_frees=..., tracker=..., cache_actions=...)
    read device_frees, host_frees, tracker, cache_actions

# mem_cache/mamba_radix/prefill.py: judicious admission cuts no prefill
sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache
    read enable_mamba_extra_buffer
sglang.srt.managers.schedule_batch.Req
    read mamba_branching_seqlen, prefix_len, extend_end
sglang.srt.managers.schedule_policy.PrefillAdder
    read new_chunked_req, rem_chunk_tokens, chunked_req_limit, dllm_config, can_run_list
sglang.srt.managers.schedule_policy._PrefillAdmission
    read prefix_len, extend_len, max_new_tokens, is_chunked
sglang.srt.managers.schedule_policy.AddReqResult
    read
    read OTHER
sglang.srt.mem_cache.unified_cache.components.mamba.MambaComponent
    read mamba_checkpoint_grid

# mem_cache/mamba_radix/tuning.py: the tuner simulates another grid of states
sglang.srt.runtime_context
    call mamba_checkpoint_grid(tree_page)
    call mamba_track_grid(tree_page)

# mem_cache/mamba_radix/tuning.py: requests are not told to the tuner
sglang.srt.managers.schedule_batch.Req
    call finished(self)
    read rid, session, origin_input_ids, output_ids, full_untruncated_fill_ids, kv
sglang.srt.managers.schedule_batch.ReqKvInfo
    read kv_committed_len

# mem_cache/mamba_radix/tuning.py: a recording has no arrivals
sglang.srt.managers.schedule_batch.Req
    read time_stats
sglang.srt.observability.req_time_stats.SchedulerReqTimeStats
    read scheduler_recv_time

# mem_cache/mamba_radix/tuning.py: the tuner knows neither pools nor group
sglang.srt.mem_cache.cache_init_params.CacheInitParams
    read chunked_prefill_size, enable_mamba_extra_buffer, tp_cache_group
sglang.srt.mem_cache.allocator.BaseTokenToKVPoolAllocator
    read size
sglang.srt.mem_cache.memory_pool.HybridReqToTokenPool
    read mamba_allocator, mamba_ckpt_pool, mamba_initial_tracking_slots
sglang.srt.mem_cache.allocator.mamba.MambaSlotAllocator
    read size
sglang.srt.mem_cache.mamba_checkpoint_pool.MambaCheckpointPool
    read num_slots

# mem_cache/marconi/tree.py: requests of several namespaces are mixed up
sglang.srt.managers.schedule_batch.Req
    read extra_key, cache_salt

# mem_cache/marconi/costs/pools.py: bytes of a state are unknown
sglang.srt.mem_cache.mamba_checkpoint_pool.MambaCheckpointPool
    read conv, temporal
sglang.srt.mem_cache.memory_pool.HybridReqToTokenPool
    read mamba_pool
sglang.srt.mem_cache.memory_pool.MambaPool
    read mamba_cache, _slot_siblings
sglang.srt.mem_cache.mamba_checkpoint_pool.Int8CheckpointStore
    call bytes_per_slot(self)

# mem_cache/marconi/costs/pools.py: bytes of KV are unknown
sglang.srt.mem_cache.memory_pool.HybridLinearKVPool
    read full_kv_pool
sglang.srt.mem_cache.swa_memory_pool.SWAKVPool
    read full_kv_pool, swa_kv_pool
sglang.srt.mem_cache.memory_pool.MHATokenToKVPool
    call get_kv_size_bytes(self)
    read size, page_size
sglang.srt.mem_cache.memory_pool.MLATokenToKVPool
    call get_kv_size_bytes(self)
    read size, page_size

# mem_cache/marconi/costs/pools.py: bytes in one memory are unknown
sglang.srt.mem_cache.unified_memory_pool.UnifiedMHATokenToKVPool
    read _unified_buffer, _sub_pool_name
sglang.srt.mem_cache.unified_memory_pool.UnifiedMambaPool
    read _unified_buffer, _sub_pool_name
sglang.srt.mem_cache.unified_memory_pool.UnifiedKVPool
    call spec(self, name)
sglang.srt.mem_cache.unified_memory_pool.SubPoolSpec
    call entry_bytes(self)
"""


class Need(NamedTuple):
    """One name.

    Attributes:
        path: dotted.
        kind: hook, subclass, override, call or read.
        signature: parameters and defaults; empty for what is read or derived from.
        user: our file, below ``sglang/srt``, or one of several.
        without: what goes wrong where the name is missing or another.
    """

    path: str
    kind: str
    signature: str
    user: str
    without: str


def _entries(table: str) -> Iterator[Need]:
    user = without = owner = ""
    for line in re.sub(r",\n {8}", ", ", table).splitlines():
        if line.startswith("# "):
            user, _, without = line[2:].partition(": ")
        elif line.startswith("    "):
            kind, _, what = line.strip().partition(" ")
            for name in what.split(", ") if kind == "read" else [what]:
                name, opening, rest = name.partition("(")
                path = f"{owner}.{name}" if name else owner
                yield Need(path, kind, opening + rest, user, without)
        elif line:
            owner = line


CONTRACT: tuple[Need, ...] = tuple(_entries(_TABLE))
