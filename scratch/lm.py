import math, time, sys, torch, torch.nn as nn, torch.nn.functional as F
torch.set_num_threads(1)
from nexuslab.optim import Muon
from nexuslab.systems.language.scan import scan
text=open('/work/shared/data/tinyshakespeare.txt').read(); chars=sorted(set(text)); idx={c:i for i,c in enumerate(chars)}
data=torch.tensor([idx[c] for c in text]); n=int(.9*len(data)); tr,va=data[:n],data[n:]
V=len(chars)
class RMS(nn.Module):
    def __init__(s,d): super().__init__(); s.g=nn.Parameter(torch.ones(d))
    def forward(s,x): return F.rms_norm(x,(x.shape[-1],),s.g,1e-5)
def inside(x,dec,b,c):
    # one chunk, no state: x (B,T,H,P) dec (B,T,H) cum
    d=dec.transpose(1,2); L=d[...,:,None]-d[...,None,:]
    T=x.shape[1]; mask=torch.ones(T,T,dtype=torch.bool).tril()
    L=L.masked_fill(~mask,-torch.inf).exp()
    return ((L*(c@b.transpose(1,2))[:,None])@x.transpose(1,2)).transpose(1,2)
class SSD(nn.Module):
    def __init__(s,d,heads,N,inner):
        super().__init__(); s.h=heads; s.N=N; s.i=inner
        s.norm=RMS(d); s.inp=nn.Linear(d,2*inner+2*N+heads,bias=False); s.out=nn.Linear(inner,d,bias=False)
        s.conv=nn.Parameter(torch.randn(4,inner+2*N)*.3); 
        with torch.no_grad(): s.conv[3]+=.7
        s.a=nn.Parameter(torch.log(torch.linspace(1,8,heads))); s.dt=nn.Parameter(torch.full((heads,),-2.)); s.D=nn.Parameter(torch.ones(heads)); s.on=RMS(inner)
        nn.init.zeros_(s.out.weight)
    def forward(s,u):
        B,T,_=u.shape; z,xbc,dt=s.inp(s.norm(u)).split([s.i,s.i+2*s.N,s.h],-1)
        p=F.pad(xbc,(0,0,3,0)); xbc=F.silu(sum(p[:,k:k+T]*s.conv[k] for k in range(4)))
        x,b,c=xbc.split([s.i,s.N,s.N],-1); dt=F.softplus(dt+s.dt); x=x.unflatten(-1,(s.h,-1))
        y=inside(x*dt[...,None],(-dt*s.a.exp()).cumsum(1),b,c)+x*s.D[:,None]
        return u+s.out(s.on(y.flatten(2)*F.silu(z)))
class Attn(nn.Module):
    def __init__(s,d,h):
        super().__init__(); s.h=h; s.n1=nn.LayerNorm(d,bias=False); s.qkv=nn.Linear(d,3*d,bias=False); s.o=nn.Linear(d,d,bias=False); s.n2=nn.LayerNorm(d,bias=False); s.f=nn.Linear(d,4*d,bias=False); s.g=nn.Linear(4*d,d,bias=False)
    def forward(s,x):
        B,T,d=x.shape; q,k,v=(t.unflatten(-1,(s.h,-1)).transpose(1,2) for t in s.qkv(s.n1(x)).chunk(3,-1))
        x=x+s.o(F.scaled_dot_product_attention(q,k,v,is_causal=True).transpose(1,2).flatten(2)); return x+s.g(F.gelu(s.f(s.n2(x))))
class LM(nn.Module):
    def __init__(s,kind,d,layers,bi=0,**k):
        super().__init__(); s.e=nn.Embedding(V,d); nn.init.normal_(s.e.weight,std=.02); s.bi=bi
        if bi: s.b=nn.Embedding((V+1)*V,bi); nn.init.normal_(s.b.weight,std=.02); s.bp=nn.Linear(bi,d,bias=False)
        s.p=nn.Embedding(64,d) if kind=="gpt" else None
        s.blocks=nn.ModuleList(Attn(d,4) if kind=="gpt" else SSD(d,**k) for _ in range(layers)); s.n=RMS(d)
        if s.p: nn.init.normal_(s.p.weight,std=.02)
        s.kind=kind
    def forward(s,i):
        x=s.e(i)
        if s.bi:
            prev=F.pad(i[:,:-1],(1,0),value=V); x=x+s.bp(s.b(prev*V+i))
        if s.p: x=x+s.p.weight[:i.shape[1]]
        for b in s.blocks: x=b(x)
        return F.linear(s.n(x),s.e.weight)
def evaluate(m):
    m.eval(); T=64; k=(len(va)-1)//T; x=va[:k*T].view(-1,T); y=va[1:k*T+1].view(-1,T); tot=0
    with torch.no_grad():
        for j in range(0,len(x),64): tot+=F.cross_entropy(m(x[j:j+64]).flatten(0,1),y[j:j+64].flatten(),reduction="sum").item()
    m.train(); return tot/(k*T)
def train(m,lr,seconds,batch=12,seed=0,wd=.1):
    torch.manual_seed(seed); mats=[p for n,p in m.blocks.named_parameters() if p.ndim==2 and "conv" not in n]+([m.bp.weight] if m.bi else [])
    ids=set(map(id,mats)); rest=[p for p in m.parameters() if id(p) not in ids]
    opt=Muon([{"params":mats,"matrices":True,"weight_decay":wd},{"params":rest,"matrices":False,"weight_decay":0.}],lr,(.9,.95),1e-8,.95,.2)
    t0=time.process_time(); step=0; 
    while (u:=(time.process_time()-t0)/seconds)<1:
        f=min(1,(step+1)/50)*(0.1+.9*.5*(1+math.cos(math.pi*u)))
        for g in opt.param_groups: g["lr"]=lr*f
        i=torch.randint(len(tr)-65,(batch,)); w=torch.stack([tr[k:k+65] for k in i])
        loss=F.cross_entropy(m(w[:,:-1]).flatten(0,1),w[:,1:].flatten()); loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(),1.); opt.step(); opt.zero_grad(); step+=1
    return step
if __name__=="__main__":
    import json
    S=float(sys.argv[1])
    for spec in sys.argv[2:]:
        k=json.loads(spec); lr=k.pop("lr",.01); batch=k.pop("batch",12); torch.manual_seed(0); m=LM(**k)
        n=sum(p.numel() for p in m.parameters()); st=train(m,lr,S,batch); print(spec,n,"steps",st,"val",round(evaluate(m),4),flush=True)
